"""Role `station`: a non-AP MLD that joins with several links, or a station without MLO (wpa_supplicant)."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from testbed import features
from testbed.drivers import wpa_supplicant
from testbed.drivers.nl80211 import LinksAre
from testbed.drivers.wpa_ctrl import Control, Controlled
from testbed.drivers.wpa_supplicant import Sta
from testbed.nodes.place import Bss, Place, named
from testbed.nodes.role import Brought, Radio, Role
from testbed.steps import START, Spawn, Step, Wait, Write
from testbed.units import Address

_WITHIN = 90.0  # s: on an emulated processor some scans miss beacons, and the station has to join again


class Station(Role):
    """A station of the access point with this SSID: it joins with all links, with some, or on one without MLO."""

    called: ClassVar[str] = "a station"

    ssid: str
    mlo_links: tuple[int, ...] | None = Field(None, min_length=1, description="Link IDs; all when left out")
    legacy_link: int | None = Field(None, description="Without MLO: the link ID of the one that it joins")
    password: str | None = Field(None, description="The access point's when left out")
    name: str = Field("wlan0", description="The interface")
    addresses: Annotated[tuple[Address, ...] | None, Field(description="Planned when left out")] = None

    def mlo(self, place: Place) -> bool:
        """Return whether it joins as an MLD."""
        bss = self.bss(place)
        return bss is not None and bss.mlo and self.legacy_link is None

    def bss(self, place: Place) -> Bss | None:
        """Return the BSS that it joins."""
        return next((b for b in place.air if b.ssid == self.ssid), None)

    def freqs(self, bss: Bss) -> tuple[tuple[int, int], ...]:
        """Return (link_id, MHz) of the links that it joins with."""
        if self.legacy_link is not None:
            return tuple((n, f) for n, f in bss.freqs if n == self.legacy_link)
        return tuple((n, f) for n, f in bss.freqs if self.mlo_links is None or n in self.mlo_links)

    def _unwanted(self, bss: Bss) -> tuple[str, ...]:
        """Return the BSSIDs of the links of an AP MLD that it does not join with."""
        chosen = dict(self.freqs(bss))
        links = zip(bss.freqs, bss.bssids, strict=True) if bss.mlo and self.legacy_link is None else ()
        return tuple(bssid for (n, _), bssid in links if n not in chosen)

    def rejoin(self, place: Place) -> tuple[Control, ...]:
        """Return the commands that make it leave and join again."""
        bss = self.bss(place)
        return wpa_supplicant.rejoin(place.node, self.name, self._unwanted(bss) if bss is not None else ())

    def interfaces(self, forwards: bool) -> tuple[Brought, ...]:
        """Return its interface, on the medium of the access point."""
        return (Brought(self.name, "wlan", self.addresses, medium=self.ssid),)

    def radio(self, place: Place) -> Radio | None:
        """Return its radio, None where there is nothing that it could join."""
        bss = self.bss(place)
        return None if bss is None else Radio(self.name, "managed", self.mlo(place), self.freqs(bss))

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that this role needs."""
        if self.legacy_link is not None:
            return (features.HWSIM, features.WPA_SUPPLICANT, features.REGDB)
        return (features.HWSIM_MLO, features.WPA_SUPPLICANT_MLO, features.REGDB)

    def faults(self, place: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (path below this role, sentence) for each fault."""
        yield from named(self.name, place, "the station needs another name")
        bss = self.bss(place)
        if bss is None:
            have = ", ".join(repr(b.ssid) for b in place.air) or "none"
            yield ("ssid",), f"no access point has the SSID {self.ssid!r} (there are: {have})"
            return
        if any(i.port for i in place.interfaces if i.name == self.name):
            yield (), f"{self.name} cannot be a port of a bridge: a station only sends frames from its own address"
        if self.password is not None and self.password != bss.password and bss.akm.startswith("sae"):
            yield ("password",), f"this differs from the password of {bss.node}: {self.name} could never join"
        if self.password is not None and not self.password.isprintable():
            yield ("password",), "a password must be printable"
        if self.mlo_links is not None and self.legacy_link is not None:
            yield ("legacy_link",), "a station joins either with `mlo_links` or, without MLO, on its `legacy_link`"
        known = [n for n, _ in bss.freqs]
        some = ", ".join(map(str, known))
        for n, link_id in enumerate(self.mlo_links or ()):
            if link_id not in known:
                yield ("mlo_links", n), f"{bss.node} has no link {link_id} (link IDs: {some})"
            elif link_id in (self.mlo_links or ())[:n]:
                yield ("mlo_links", n), f"link {link_id} is listed twice"
        if self.mlo_links is not None and not bss.mlo:
            yield ("mlo_links",), f"{bss.node} is not an AP MLD: leave `mlo_links` out"
        if self.legacy_link is not None and self.legacy_link not in known:
            yield ("legacy_link",), f"{bss.node} has no link {self.legacy_link} (link IDs: {some})"

    def steps(self, place: Place) -> Iterator[Step]:
        """Yield wpa_supplicant's configuration, its process, and the wait for the planned links."""
        bss = self.bss(place)
        own = place.interface(self.name)
        assert bss is not None
        assert own is not None
        freqs = self.freqs(bss)
        sta = Sta(
            ifname=self.name,
            ssid=self.ssid,
            country=bss.country,
            freqs=tuple(dict.fromkeys(f for n, f in (*freqs, *bss.moves) if n in dict(freqs))),
            akm=bss.akm,
            pairwise=bss.pairwise,
            password=self.password or bss.password,
            pmf=bss.pmf,
            beacon_protection=bss.beacon_protection,
        )
        file, name = f"{place.node}/wpa_supplicant.conf", "wpa_supplicant"
        yield Write(file, wpa_supplicant.config(sta, wpa_supplicant.folder(place.node)), place.node)
        yield Spawn(place.node, name, wpa_supplicant.argv(self.name, file))
        yield Wait(place.node, Controlled("wpa", wpa_supplicant.folder(place.node), self.name), START, process=name)
        yield Wait(
            place.node,
            LinksAre(self.name, freqs, self.mlo(place), (bss.node, bss.ifname, own.mac)),
            within=_WITHIN,
            process=name,
            urge=wpa_supplicant.join(place.node, self.name, self._unwanted(bss)),
            again=self.rejoin(place),
        )
