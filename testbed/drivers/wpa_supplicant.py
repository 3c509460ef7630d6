"""wpa_supplicant(8): the configuration of a station, and the commands that let it join."""

from __future__ import annotations

from msgspec import Struct

from testbed.drivers.wpa_ctrl import Control

_KEY_MGMT = {"sae": "SAE", "sae-ext-key": "SAE-EXT-KEY", "owe": "OWE", "open": "NONE"}
_CIPHERS = {"ccmp": "CCMP", "gcmp-256": "GCMP-256"}


class Sta(Struct, frozen=True):
    """A station as its file states it; it looks for the network on these frequencies (MHz) and no others."""

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
    """Return the file; the network is disabled: its station joins when the access point is up, in its turn.

    No `bssid`: of an MLD the 4-way handshake has another address, and fails with it.
    """
    # A scan of every channel of hwsim takes 12 s, of three half a second.
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
    """Join the network, with no link whose BSSID is unwanted."""
    return _told(node, ifname, (*_ignore(unwanted), "ENABLE_NETWORK 0"))


def rejoin(node: str, ifname: str, unwanted: tuple[str, ...] = ()) -> tuple[Control, ...]:
    """Leave and join anew with all links but the unwanted.

    An access point that rejected one request is on the list of BSSIDs to ignore: with that, the PMKSA cache or the
    old scan, a station would be left with fewer links. A scan that missed a beacon, on a busy processor, has the same
    cure.
    """
    fresh = ("DISCONNECT", "PMKSA_FLUSH", "BSS_FLUSH 0", "BSSID_IGNORE clear")
    return _told(node, ifname, (*fresh, *_ignore(unwanted), "RECONNECT"))


def _ignore(bssids: tuple[str, ...]) -> tuple[str, ...]:
    """Return what leaves links out of an association.

    Nothing else does: the frequencies of a network limit where it looks for an MLD, and of the links that it does not
    find there it asks the MLD itself (an ML probe request). Said five times a BSSID is ignored for ten minutes.
    """
    return tuple(f"BSSID_IGNORE {bssid}" for bssid in bssids for _ in range(5))


def _told(node: str, ifname: str, commands: tuple[str, ...]) -> tuple[Control, ...]:
    return tuple(Control("wpa", folder(node), ifname, c) for c in commands)
