"""wpa_supplicant(8): the configuration file of a station, and the commands that make it join."""

from __future__ import annotations

from msgspec import Struct

from testbed.drivers.wpa_ctrl import Control

_KEY_MGMT = {"sae": "SAE", "sae-ext-key": "SAE-EXT-KEY", "owe": "OWE", "open": "NONE"}
_CIPHERS = {"ccmp": "CCMP", "gcmp-256": "GCMP-256"}


class Sta(Struct, frozen=True):
    """The configuration of a station; it scans these frequencies (MHz) only."""

    ifname: str
    ssid: str
    country: str
    freqs: tuple[int, ...]
    akm: str
    pairwise: str
    password: str
    pmf: bool
    beacon_protection: bool


def folder(node: str) -> str:
    """Return the folder of the control socket."""
    return f"/run/testbed/wpa-{node}"


def config(sta: Sta, control: str) -> str:
    """Return the configuration file; its network is disabled, so that a station only joins when told to.

    It has no `bssid`: the 4-way handshake of an MLD uses another address and would fail.
    """
    # Scanning all channels of hwsim takes 12 s, three of them half a second.
    freqs = " ".join(map(str, sta.freqs))
    rows = [f'ssid="{sta.ssid}"', f"key_mgmt={_KEY_MGMT[sta.akm]}", f"scan_freq={freqs}", f"freq_list={freqs}"]
    if sta.akm != "open":
        rows += [f"pairwise={_CIPHERS[sta.pairwise]}", f"ieee80211w={2 if sta.pmf else 0}"]
        rows += [f"group={_CIPHERS[sta.pairwise]}"]
        rows += ["beacon_prot=1"] if sta.beacon_protection else []
    rows += [f'sae_password="{sta.password}"'] if sta.akm.startswith("sae") else []
    rows += ["disabled=1"]
    body = "".join(f"    {row}\n" for row in rows)
    head = (f"ctrl_interface={control}", f"country={sta.country}", "sae_pwe=2", "sae_groups=19 20")
    return "".join(f"{row}\n" for row in head) + f"network={{\n{body}}}\n"


def argv(ifname: str, file: str) -> tuple[str, ...]:
    """Return the command line."""
    return ("wpa_supplicant", "-t", "-D", "nl80211", "-i", ifname, "-c", file)


def join(node: str, ifname: str, unwanted: tuple[str, ...] = ()) -> tuple[Control, ...]:
    """Join the network without links whose BSSIDs are unwanted."""
    return _told(node, ifname, (*_ignore(unwanted), "ENABLE_NETWORK 0"))


def rejoin(node: str, ifname: str, unwanted: tuple[str, ...] = ()) -> tuple[Control, ...]:
    """Leave the network and join again with all links but the unwanted ones.

    wpa_supplicant ignores the BSSID of an access point that rejected a request: with that list, its PMKSA cache or an
    old scan it would join with fewer links. Clearing them also helps if a scan missed a beacon on a busy processor.
    """
    fresh = ("DISCONNECT", "PMKSA_FLUSH", "BSS_FLUSH 0", "BSSID_IGNORE clear")
    return _told(node, ifname, (*fresh, *_ignore(unwanted), "RECONNECT"))


def _ignore(bssids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the commands that keep links out of an association.

    The frequencies of a network do not: they only limit where wpa_supplicant looks for an MLD, which it then asks for
    its other links (an ML probe request). Five times BSSID_IGNORE make it ignore a BSSID for ten minutes.
    """
    return tuple(f"BSSID_IGNORE {bssid}" for bssid in bssids for _ in range(5))


def _told(node: str, ifname: str, commands: tuple[str, ...]) -> tuple[Control, ...]:
    return tuple(Control("wpa", folder(node), ifname, c) for c in commands)
