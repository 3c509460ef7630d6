"""Role `access_point`: an AP MLD of one to three links, or an access point without MLO (IEEE 802.11be, hostapd)."""

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from testbed import features
from testbed.drivers import hostapd
from testbed.drivers.channels import channel
from testbed.drivers.hostapd import Ap
from testbed.drivers.nl80211 import LinksAre
from testbed.drivers.wpa_ctrl import Controlled
from testbed.nodes.place import Bss, Place, named
from testbed.nodes.role import Brought, Radio, Role
from testbed.spec import Spec
from testbed.steps import START, Spawn, Step, Wait, Write
from testbed.units import Address

_GCMP_MTU = 1400  # bytes: hwsim leaves no room for the MIC of software GCMP behind longer frames, and drops them
_MTU = 1500
_LINKS = 3
_STATIONS = 20
Akm = Literal["sae", "sae-ext-key", "owe", "open"]
Pairwise = Literal["ccmp", "gcmp-256"]


class Security(Spec):
    """How stations join (IEEE 802.11-2024 clause 12): SAE with a password, OWE (RFC 8110), or an open network."""

    akm: Akm = "sae"
    pairwise: Pairwise = "ccmp"
    password: str = Field("correct horse battery", min_length=8, max_length=63)
    pmf: bool = Field(True, description="Protected management frames (IEEE 802.11w)")
    beacon_protection: bool | None = Field(None, description="Beacons with a BIP MIC; as `pmf` when left out")


class MloLink(Spec):
    """One affiliated AP: its link ID and its channel of 20 MHz."""

    link_id: int = Field(ge=0, le=14)
    freq: int = Field(description="Centre of a 20 MHz channel in MHz: 2412, 5180, 5975 ...")


class AccessPoint(Role):
    """An AP MLD (`mlo_links`) or an access point of one channel (`freq`); its interface may be a port of a bridge."""

    called: ClassVar[str] = "an access point"

    ssid: str = Field(min_length=1, max_length=32)
    country: str = Field("DE", description="ISO 3166 alpha-2; decides which frequencies are allowed")
    security: Security = Field(default_factory=Security)
    mlo_links: tuple[MloLink, ...] | None = Field(None, min_length=1, max_length=_LINKS)
    freq: int | None = Field(None, description="Without MLO: its only channel")
    name: str = Field("wlan0", description="The interface")
    beacon_int: int = Field(100, ge=15, le=1000, description="Time units of 1.024 ms")
    addresses: Annotated[tuple[Address, ...] | None, Field(description="Planned when left out")] = None

    def mlo(self) -> bool:
        """Return whether this is an AP MLD."""
        return self.mlo_links is not None

    def freqs(self) -> tuple[tuple[int, int], ...]:
        """Return (link_id, MHz) of every link."""
        if self.mlo_links is not None:
            return tuple((link.link_id, link.freq) for link in self.mlo_links)
        return ((0, self.freq or 0),)

    def interfaces(self, forwards: bool) -> tuple[Brought, ...]:
        """Return its interface, which makes the medium: the whole segment keeps to its MTU."""
        narrow = self.security.akm != "open" and self.security.pairwise == "gcmp-256"
        mtu = _GCMP_MTU if narrow else _MTU
        return (Brought(self.name, "wlan", self.addresses, mtu, medium=self.ssid, makes=True),)

    def radio(self, place: Place) -> Radio:
        """Return its radio."""
        return Radio(self.name, "AP", self.mlo(), self.freqs())

    def offers(self, place: Place, mac: Callable[[str], str]) -> Bss:
        """Return what it offers stations; without MLO the interface's address is the BSSID."""
        own = next(i for i in place.interfaces if i.kind == "wlan" and i.name == self.name)
        bssids = tuple(mac(f"{self.name}.{n}") for n, _ in self.freqs()) if self.mlo() else (own.mac,)
        s = self.security
        protected = s.pmf if s.beacon_protection is None else s.beacon_protection
        common = (place.node, self.name, self.ssid, self.country, self.mlo(), self.freqs(), bssids)
        return Bss(*common, s.akm, s.pairwise, s.password, s.pmf, protected)

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that this role needs."""
        own = (features.HWSIM_MLO, features.HOSTAPD_BE) if self.mlo() else (features.HWSIM, features.HOSTAPD)
        return (*own, features.REGDB)

    def faults(self, place: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (path below this role, sentence) for each fault."""
        yield from named(self.name, place, "the access point needs another name")
        if (self.mlo_links is None) == (self.freq is None):
            what = "it has both" if self.freq is not None else "it has neither"
            yield (), f"an access point needs either `mlo_links` (an AP MLD) or a `freq` (without MLO); {what}"
        if not re.fullmatch("[A-Z]{2}", self.country):
            yield (
                ("country",),
                f"{self.country!r} is not a country code: write two capital letters, such as DE (ISO 3166)",
            )
        elif others := [b for b in place.air if b.country != self.country]:
            what = f"{others[0].node} is in {others[0].country}"
            yield ("country",), f"{what}, and a kernel has one regulatory domain: put all access points in one country"
        yield from _channels(self)
        yield from _wrong_security(self)
        if len(self.ssid.encode()) > 32 or not self.ssid.isprintable() or '"' in self.ssid:
            yield ("ssid",), f"{self.ssid!r} is not a valid SSID: use 1 to 32 printable bytes without quotation marks"
        same = [b.node for b in place.air if b.ssid == self.ssid]
        if same[:1] not in ([], [place.node]):
            what = f"{same[0]} has the SSID {self.ssid!r} as well: each access point of a lab needs its own"
            yield ("ssid",), f"{what}, because stations do not roam between access points"
        own = next((b for b in place.air if b.node == place.node), None)
        if own is not None and own.stations > _STATIONS:
            what = f"{own.stations} stations have this SSID, and an access point takes at most {_STATIONS} of them"
            yield ("ssid",), f"{what} (a second access point with another SSID)"

    def steps(self, place: Place) -> Iterator[Step]:
        """Yield hostapd's configuration, its process, and the wait until every link is up on its channel."""
        own = next(b for b in place.air if b.node == place.node)
        interface = place.interface(self.name)
        assert interface is not None
        files = []
        for (link_id, freq), bssid in zip(own.freqs, own.bssids, strict=True):
            partners = tuple(f for n, f in own.freqs if n != link_id)
            ap = Ap(
                ifname=self.name,
                ssid=self.ssid,
                country=self.country,
                freq=freq,
                bssid=bssid,
                mld=interface.mac if self.mlo() else "",
                akm=own.akm,
                pairwise=own.pairwise,
                password=own.password,
                pmf=own.pmf,
                beacon_protection=own.beacon_protection,
                beacon_int=self.beacon_int,
                bridge=place.bridge if interface.port else "",
                partners=partners,
            )
            files.append(f"{place.node}/hostapd-{link_id}.conf")
            yield Write(files[-1], hostapd.config(ap, hostapd.folder(place.node, link_id)), place.node)
        yield Spawn(place.node, "hostapd", hostapd.argv(tuple(files)))
        for link_id, _ in own.freqs:
            there = Controlled("hostapd", hostapd.folder(place.node, link_id), self.name)
            yield Wait(place.node, there, START, process="hostapd")
        yield Wait(place.node, LinksAre(self.name, own.freqs, self.mlo()), START, process="hostapd")


def _channels(role: AccessPoint) -> Iterator[tuple[tuple[str | int, ...], str]]:
    ids: dict[int, int] = {}
    freqs: dict[int, int] = {}
    for n, (link_id, freq) in enumerate(role.freqs()):
        at: tuple[Any, ...] = ("mlo_links", n) if role.mlo_links is not None else ()
        if role.mlo_links is None and role.freq is None:
            return
        if link_id in ids:
            yield (*at, "link_id"), f"item {ids[link_id] + 1} already has the link_id {link_id}"
        elif role.mlo_links is not None and link_id != n:
            yield (
                (*at, "link_id"),
                f"hostapd numbers links in the order of the list: this link_id must be {n}, not {link_id}",
            )
        if freq in freqs:
            yield (*at, "freq"), f"item {freqs[freq] + 1} already uses {freq} MHz: each link needs its own channel"
        ids.setdefault(link_id, n)
        freqs.setdefault(freq, n)
        if (found := channel(freq)) is None:
            yield (*at, "freq"), f"{freq} MHz is not the centre of a 20 MHz channel, such as 2412, 5180 or 5975"
        elif found.radar:
            why = "where an access point must first listen for radars for a minute (DFS)"
            yield (*at, "freq"), f"{freq} MHz is channel {found.number}, {why}: use 5180 to 5240, or 5745 and above"


def _wrong_security(role: AccessPoint) -> Iterator[tuple[tuple[str | int, ...], str]]:
    s = role.security
    six = [f for _, f in role.freqs() if (c := channel(f)) is not None and c.band == "6 GHz"]
    strict = "an AP MLD" if role.mlo() else "6 GHz"
    if (role.mlo() or six) and s.akm == "open":
        yield ("security", "akm"), f"{strict} must be protected (IEEE 802.11be 12.12.2): use sae, sae-ext-key or owe"
    elif s.akm != "open" and not s.pmf and (role.mlo() or six or s.akm == "owe"):
        yield (
            ("security", "pmf"),
            f"{'OWE' if s.akm == 'owe' else strict} needs protected management frames: `pmf: true`",
        )
    if s.beacon_protection and not s.pmf and s.akm != "open":
        yield ("security", "beacon_protection"), "beacon protection needs protected management frames: `pmf: true`"
    if "|" in s.password or not s.password.isprintable():
        yield ("security", "password"), "a password must be printable and not contain `|` (hostapd.conf)"
