"""hostapd(8): the configuration files of an access point, one for each link of an AP MLD, and control commands."""

from __future__ import annotations

from msgspec import Struct

from testbed.drivers.channels import Channel, channel
from testbed.drivers.wpa_ctrl import Control

# Element IDs (IEEE 802.11-2024, table 9-130) that the link of an association may have and another link may lack.
# Without a Non-Inheritance element (9.4.2.240) the per-STA profile of the association response would inherit them, and
# mac80211, which is strict with hwsim, refuses VHT on 2.4 GHz and HT on 6 GHz (net/mac80211/mlme.c).
_HT, _VHT = (45, 61), (191, 192)
_EXTENSION, _NON_INHERITANCE = 255, 56
_KEY_MGMT = {"sae": "SAE", "sae-ext-key": "SAE-EXT-KEY", "owe": "OWE"}
_CIPHERS = {"ccmp": "CCMP", "gcmp-256": "GCMP-256"}
BEACONS = 10  # between the announcement of a removal and the removal


class Ap(Struct, frozen=True):
    """The configuration of one BSS of an access point; `mld` is the MLD address, "" without MLO."""

    ifname: str
    ssid: str
    country: str
    freq: int
    bssid: str
    mld: str
    akm: str
    pairwise: str
    password: str
    pmf: bool
    beacon_protection: bool
    beacon_int: int
    bridge: str
    partners: tuple[int, ...]  # frequencies of the other links


def folder(node: str, link_id: int) -> str:
    """Return the folder of a link's control socket: hostapd 2.11 needs one for each link, or the MLD fails to start."""
    return f"/run/testbed/hostapd-{node}-{link_id}"


def config(ap: Ap, control: str) -> str:
    """Return the configuration file of one link."""
    at = channel(ap.freq)
    assert at is not None, "the role refuses other frequencies"
    rows = [f"interface={ap.ifname}", "driver=nl80211", f"ctrl_interface={control}", f"ssid={ap.ssid}"]
    rows += [f"country_code={ap.country}", "ieee80211d=1", *_radio(at), f"beacon_int={ap.beacon_int}", "wmm_enabled=1"]
    if ap.mld:
        # The interface already has the MLD's address; a link's address must differ from it.
        rows += ["ieee80211be=1", "mld_ap=1", f"mld_addr={ap.mld}", f"bssid={ap.bssid}"]
    rows += _security(ap)
    rows += [f"bridge={ap.bridge}"] if ap.bridge else []
    lacking = _lacking(at, ap.partners)
    rows += [f"assocresp_elements={lacking}"] if ap.mld and lacking else []
    return "".join(f"{row}\n" for row in rows)


def _radio(at: Channel) -> list[str]:
    if at.band == "2.4 GHz":
        return ["hw_mode=g", f"channel={at.number}", "ieee80211n=1", "ieee80211ax=1"]
    if at.band == "5 GHz":
        return ["hw_mode=a", f"channel={at.number}", "ieee80211n=1", "ieee80211ac=1", "ieee80211ax=1"]
    return ["hw_mode=a", f"channel={at.number}", f"op_class={at.op_class}", "ieee80211ax=1"]


def _security(ap: Ap) -> list[str]:
    if ap.akm == "open":
        return []
    rows = ["wpa=2", f"wpa_key_mgmt={_KEY_MGMT[ap.akm]}", f"rsn_pairwise={_CIPHERS[ap.pairwise]}"]
    rows += [f"ieee80211w={2 if ap.pmf else 0}"]
    rows += ["group_mgmt_cipher=AES-128-CMAC"] if ap.pmf else []
    rows += ["beacon_prot=1"] if ap.beacon_protection else []
    if ap.akm.startswith("sae"):
        # 2: both hash-to-element, which MLO and 6 GHz require, and hunting-and-pecking
        rows += ["sae_pwe=2", "sae_groups=19 20", f"sae_password={ap.password}"]
    return rows


def _lacking(at: Channel, partners: tuple[int, ...]) -> str:
    """Return the Non-Inheritance element of a link in hexadecimal, "" if it has all elements of the other links."""
    bands = {found.band for f in partners if (found := channel(f)) is not None}
    ids: tuple[int, ...] = ()
    if at.band == "2.4 GHz":
        ids = _VHT if "5 GHz" in bands else ()
    elif at.band == "6 GHz":
        ids = (*(_HT if bands & {"2.4 GHz", "5 GHz"} else ()), *(_VHT if "5 GHz" in bands else ()))
    body = bytes((_NON_INHERITANCE, len(ids), *ids, 0))
    return bytes((_EXTENSION, len(body), *body)).hex() if ids else ""


def argv(files: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command line: one process for all links, whose IDs are the positions of their files."""
    return ("hostapd", "-t", *files)


def link_remove(node: str, ifname: str, link_id: int) -> Control:
    """Announce the removal of a link (Reconfiguration Multi-Link element, IEEE 802.11be 35.3.6.3), then remove it."""
    return Control("hostapd", folder(node, link_id), ifname, f"LINK_REMOVE {BEACONS}")


def link_return(node: str, ifname: str, link_id: int) -> Control:
    """Bring a removed link back."""
    return Control("hostapd", folder(node, link_id), ifname, "ENABLE")


def channel_switch(node: str, ifname: str, link_id: int, freq: int, mlo: bool) -> Control:
    """Announce a link's new channel in five beacons, then switch (IEEE 802.11-2024, 11.9.8).

    A generation that the command does not name is off afterwards; stations cannot join a link of an MLD without EHT.
    """
    at = channel(freq)
    modes = {"2.4 GHz": "ht he", "5 GHz": "ht vht he", "6 GHz": "he"}[at.band if at else "5 GHz"]
    modes += " eht" if mlo else ""
    words = f"CHAN_SWITCH 5 {freq} center_freq1={freq} bandwidth=20 {modes}"
    return Control("hostapd", folder(node, link_id), ifname, words)
