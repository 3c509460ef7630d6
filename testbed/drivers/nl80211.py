"""Wireless interfaces and their MLO links: nl80211 requests and decoders (include/uapi/linux/nl80211.h).

pyroute2 lacks the attributes of multi-link operation (IEEE 802.11be).
"""

from __future__ import annotations

import struct
from typing import Literal

from msgspec import Struct

from testbed.linux import uapi
from testbed.linux.wire import Message, Space, attr, attributes, decoder, text, u32
from testbed.steps import Probe, Request

FAMILY = "nl80211"
GET_WIPHY, SET_WIPHY, GET_INTERFACE, NEW_INTERFACE, GET_STATION = 1, 2, 5, 7, 17
REQ_SET_REG, GET_REG, GET_SCAN = 27, 31, 32
SET_WIPHY_NETNS, SET_CHANNEL = 49, 65
CONNECT, DISCONNECT, CH_SWITCH_NOTIFY, LINKS_REMOVED = 46, 48, 88, 154
_WIPHY, _WIPHY_NAME, _IFINDEX, _IFNAME, _IFTYPE, _MAC, _REG_ALPHA2, _FREQ, _BSS = 1, 2, 3, 4, 5, 6, 33, 38, 47
_STA_INFO, _STA_FLAGS, _AUTHORIZED = 21, 17, 1 << 1  # NL80211_STA_INFO_STA_FLAGS, NL80211_STA_FLAG_AUTHORIZED
_FRAG_THRESHOLD, _STATUS_CODE = 63, 72
_WIDTH, _SPLIT_WIPHY_DUMP, _NETNS_FD, _MLO_LINKS, _MLO_LINK_ID = 159, 174, 219, 312, 313
MLO_SUPPORT = 315
_BSSID, _BSS_FREQ, _BSS_SIGNAL, _BSS_STATUS, _BSS_SEEN, _BSS_LINK, _BSS_MLD = 1, 2, 7, 9, 10, 21, 22
_ASSOCIATED = 1  # NL80211_BSS_STATUS_ASSOCIATED
Mode = Literal["managed", "AP", "monitor"]
_MODES: dict[Mode, int] = {"managed": 2, "AP": 3, "monitor": 6}
_WIDTHS = {0: 20, 1: 20, 2: 40, 3: 80, 4: 160, 5: 160, 13: 320}  # enum nl80211_chan_width, MHz


def _command(cmd: int, *parts: bytes) -> bytes:
    return uapi.GENLMSGHDR.pack(cmd, 0, 0) + b"".join(parts)


GET_WIPHYS = _command(GET_WIPHY, attr(_SPLIT_WIPHY_DUMP, b""))
GET_INTERFACES = _command(GET_INTERFACE)
GET_COUNTRY = _command(GET_REG)


def get_scan(index: int) -> bytes:
    """Encode a request for the BSSs that an interface knows (a dump)."""
    return _command(GET_SCAN, u32(_IFINDEX, index))


def get_stations(index: int) -> bytes:
    """Encode a request for the stations of an access point (a dump)."""
    return _command(GET_STATION, u32(_IFINDEX, index))


class WiphyMove(Request, frozen=True):
    """Move a radio from the lab's own namespace, whose medium it keeps, to a node's."""

    radio: str
    node: str

    def __str__(self) -> str:
        return f"iw phy {self.radio} set netns name {self.node}"

    def encode(self, space: Space) -> Message:
        """Encode."""
        body = u32(_WIPHY, space.wiphy(self.radio)) + u32(_NETNS_FD, space.namespace(self.node))
        return Message(0, 0, _command(SET_WIPHY_NETNS, body), FAMILY)


class FragmentationSet(Request, frozen=True):
    """Set a fragmentation threshold that no frame reaches: having one keeps mac80211 off its fast path.

    hwsim encrypts frames itself and needs room for the MIC behind them. The fast path does not guarantee that room, and
    drops a frame without it with a WARNING (net/mac80211/tx.c: ieee80211_check_fast_xmit, __ieee80211_xmit_fast).
    """

    radio: str
    threshold: int = 2346  # bytes: the maximum of dot11FragmentationThreshold

    def __str__(self) -> str:
        return f"iw phy {self.radio} set frag {self.threshold}"

    def encode(self, space: Space) -> Message:
        """Encode."""
        body = u32(_WIPHY, space.wiphy(self.radio)) + u32(_FRAG_THRESHOLD, self.threshold)
        return Message(0, 0, _command(SET_WIPHY, body), FAMILY)


class WlanAdd(Request, frozen=True):
    """Add an interface to a radio; an MLD's interface has the MLD address, which differs from all link addresses."""

    radio: str
    name: str
    mode: Mode
    mac: str = ""

    def __str__(self) -> str:
        address = f" addr {self.mac}" if self.mac else ""
        return f"iw phy {self.radio} interface add {self.name} type {self.mode}{address}"

    def encode(self, space: Space) -> Message:
        """Encode."""
        body = u32(_WIPHY, space.wiphy(self.radio)) + text(_IFNAME, self.name) + u32(_IFTYPE, _MODES[self.mode])
        body += attr(_MAC, bytes.fromhex(self.mac.replace(":", ""))) if self.mac else b""
        return Message(0, 0, _command(NEW_INTERFACE, body), FAMILY)


class ChannelSet(Request, frozen=True):
    """Tune a monitor interface to a 20 MHz channel (centre frequency in MHz)."""

    name: str
    freq: int

    def __str__(self) -> str:
        return f"iw dev {self.name} set freq {self.freq} HT20"

    def encode(self, space: Space) -> Message:
        """Encode."""
        return Message(
            0, 0, _command(SET_CHANNEL, u32(_IFINDEX, space.index(self.name)), u32(_FREQ, self.freq)), FAMILY
        )


def set_country(country: str) -> bytes:
    """Encode a request for a regulatory domain (ISO 3166 alpha-2, or 00 for the whole world)."""
    return _command(REQ_SET_REG, text(_REG_ALPHA2, country))


class CountrySet(Request, frozen=True):
    """Set the regulatory domain (ISO 3166 alpha-2); a kernel has one for all radios."""

    country: str

    def __str__(self) -> str:
        return f"iw reg set {self.country}"

    def encode(self, space: Space) -> Message:
        """Encode."""
        return Message(0, 0, set_country(self.country), FAMILY)


# Requests whose encoding asks the kernel for results of earlier ones.
LOOKING = (WiphyMove, FragmentationSet, WlanAdd, ChannelSet)


class Wiphy(Struct, frozen=True):
    """A radio: its number in the kernel, and the attributes that a message had."""

    index: int
    name: str
    told: frozenset[int]


class Link(Struct, frozen=True):
    """One link of a wireless interface: ID (0 without MLO), address, frequency in MHz (0: not active), width in MHz."""

    id: int
    mac: str
    freq: int
    width: int


class Wlan(Struct, frozen=True):
    """A wireless interface; with `mlo` its links are those of an MLD, and `mac` is the MLD address."""

    index: int
    name: str
    mode: int
    mac: str
    mlo: bool
    links: tuple[Link, ...]

    @property
    def station(self) -> bool:
        """Return whether this is a station's interface (NL80211_IFTYPE_STATION)."""
        return self.mode == _MODES["managed"]

    def freqs(self) -> dict[int, int]:
        """Return the frequency (MHz) of each link by its ID."""
        return {link.id: link.freq for link in self.links}


class Bss(Struct, frozen=True):
    """The BSS of one link of a station: signal in dBm, ms since its last beacon."""

    link_id: int
    bssid: str
    freq: int
    signal: float
    seen_ms: int
    mld: str


class Told(Struct, frozen=True):
    """An event of nl80211: its command, the interface's index, and the IDs of its links.

    `status` is the access point's answer to an association, 0 when it granted that (IEEE 802.11-2024 9.4.1.9).
    """

    command: int
    index: int
    links: tuple[int, ...]
    freq: int = 0
    status: int = 0


@decoder
def parse_wiphy(entry: bytes) -> Wiphy:
    """Decode one message of a dump of GET_WIPHYS."""
    fields = attributes(entry, uapi.GENLMSGHDR.size)
    return Wiphy(_number(fields, _WIPHY), fields.get(_WIPHY_NAME, b"").rstrip(b"\0").decode(), frozenset(fields))


@decoder
def parse_interface(entry: bytes) -> Wlan:
    """Decode one message of a dump of GET_INTERFACES."""
    fields = attributes(entry, uapi.GENLMSGHDR.size)
    nests = [attributes(nest) for nest in attributes(fields.get(_MLO_LINKS, b"")).values()]
    links = [Link(n[_MLO_LINK_ID][0], mac(n[_MAC]), _number(n, _FREQ), _width(n)) for n in nests]
    if not nests and _FREQ in fields:
        links = [Link(0, mac(fields[_MAC]), _number(fields, _FREQ), _width(fields))]
    name = fields.get(_IFNAME, b"").rstrip(b"\0").decode()
    address = mac(fields.get(_MAC, b""))
    links.sort(key=lambda link: link.id)
    return Wlan(_number(fields, _IFINDEX), name, _number(fields, _IFTYPE), address, bool(nests), tuple(links))


@decoder
def parse_bss(entry: bytes) -> Bss | None:
    """Decode one message of a dump of `get_scan`; return None for BSSs that the interface is not associated with."""
    fields = attributes(attributes(entry, uapi.GENLMSGHDR.size).get(_BSS, b""))
    if _BSS_STATUS not in fields or _number(fields, _BSS_STATUS) != _ASSOCIATED:
        return None
    signal = struct.unpack("=i", fields[_BSS_SIGNAL])[0] / 100 if _BSS_SIGNAL in fields else 0.0
    link = fields.get(_BSS_LINK, b"\0")[0]
    mld = mac(fields[_BSS_MLD]) if _BSS_MLD in fields else ""
    return Bss(link, mac(fields[_BSSID]), _number(fields, _BSS_FREQ), signal, _number(fields, _BSS_SEEN), mld)


@decoder
def parse_station(entry: bytes) -> tuple[str, bool]:
    """Decode one message of a dump of `get_stations`: address (an MLD's MLD address), and whether authorized."""
    fields = attributes(entry, uapi.GENLMSGHDR.size)
    flags = attributes(fields.get(_STA_INFO, b"")).get(_STA_FLAGS, bytes(8))
    mask, value = struct.unpack("=II", flags)
    return mac(fields[_MAC]), bool(mask & value & _AUTHORIZED)


@decoder
def parse_country(entry: bytes) -> str:
    """Decode the answer to GET_COUNTRY."""
    return attributes(entry, uapi.GENLMSGHDR.size)[_REG_ALPHA2].rstrip(b"\0").decode()


@decoder
def parse_event(entry: bytes) -> Told:
    """Decode an event; its links are those in MLO_LINKS (CONNECT, LINKS_REMOVED) or the one of a channel switch."""
    fields = attributes(entry, uapi.GENLMSGHDR.size)
    nests = [attributes(nest) for nest in attributes(fields.get(_MLO_LINKS, b"")).values()]
    links = [n[_MLO_LINK_ID][0] for n in nests if _MLO_LINK_ID in n]
    links += [fields[_MLO_LINK_ID][0]] if _MLO_LINK_ID in fields else []
    status = int(struct.unpack("=H", fields[_STATUS_CODE])[0]) if _STATUS_CODE in fields else 0
    return Told(entry[0], _number(fields, _IFINDEX), tuple(sorted(links)), _number(fields, _FREQ), status)


def mac(raw: bytes) -> str:
    """Format a MAC address."""
    return raw.hex(":")


def _number(fields: dict[int, bytes], kind: int) -> int:
    return int(struct.unpack("=I", fields[kind])[0]) if kind in fields else 0


def _width(fields: dict[int, bytes]) -> int:
    return _WIDTHS.get(_number(fields, _WIDTH), 0)


class LinksAre(Probe, frozen=True):
    """A wireless interface has exactly these links, each on its frequency (MHz), and is operationally up.

    For a station that means: associated on all links, the 4-way handshake completed (only then wpa_supplicant brings
    the interface up), and authorized by the access point. With `mlo` they are the links of an MLD. `there` has, for a
    station, the access point's node and interface, and the address by which it knows the station.
    """

    name: str
    freqs: tuple[tuple[int, int], ...]
    mlo: bool
    there: tuple[str, str, str] | None = None

    def __str__(self) -> str:
        if not self.mlo:
            return f"{self.name} up on {self.freqs[0][1]} MHz"
        valid = sum(1 << n for n, _ in self.freqs)
        words = " ".join(f"{n}:{freq}" for n, freq in self.freqs)
        return f"{self.name} valid_links = {valid:#x} ({words} MHz)"

    def unmet(self, seen: Wlan | None, running: bool) -> str:
        """Return what is missing, "" if nothing is."""
        if seen is None:
            return f"there is no wireless interface {self.name}"
        wanted = {n if self.mlo else 0: freq for n, freq in self.freqs}
        have = seen.freqs()
        rows = [f"link {n} ({freq} MHz) is missing" for n, freq in wanted.items() if n not in have]
        rows += [
            f"link {n} is on {have[n]} MHz, not {freq}" if have[n] else f"link {n} ({freq} MHz) is not active"
            for n, freq in wanted.items()
            if n in have and have[n] != freq
        ]
        rows += [f"link {n} ({freq} MHz) exists but is not planned" for n, freq in have.items() if n not in wanted]
        if not have:
            rows = [f"{self.name} has no link"]
        if not rows and seen.mlo != self.mlo:
            rows = [f"{self.name} is {'an' if seen.mlo else 'not an'} MLD"]
        return ", ".join(rows) or ("" if running else f"{self.name} is not up: not authorized yet")

    def unknown(self, stations: dict[str, bool]) -> str:
        """Return how the access point lacks this station, "" if it has it; `stations`: address -> authorized."""
        if self.there is None or stations.get(self.there[2]):
            return ""
        node, _, address = self.there
        return f"{node} {'has not authorized' if address in stations else 'does not know'} the station {address}"
