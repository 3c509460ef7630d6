"""The present state of a node's interfaces, decoded with pyroute2 from the dumps that a holder sends."""

from __future__ import annotations

import struct

from msgspec import Struct
from pyroute2.netlink.exceptions import NetlinkDecodeError
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.drivers import amt, nl80211
from testbed.errors import LabError
from testbed.linux.wire import decoder


class Seen(Struct, frozen=True):
    """One interface as the kernel reports it; the state is that of RFC 2863, counters start when it is made."""

    name: str
    state: str
    mtu: int
    mac: str
    addresses: tuple[str, ...]
    qdisc: tuple[str, ...]
    rx_bytes: int
    tx_bytes: int
    amt: str = ""
    links: tuple[nl80211.Link, ...] = ()
    heard: tuple[nl80211.Bss, ...] = ()
    mld: bool = False


def interfaces(tables: dict[str, list[bytes]]) -> list[Seen]:
    """Return every interface of a node, in the kernel's order."""
    try:
        return _interfaces(tables)
    except NetlinkDecodeError as e:
        raise LabError(f"a message of the kernel is truncated or malformed (interfaces): {e}") from e


@decoder
def _interfaces(tables: dict[str, list[bytes]]) -> list[Seen]:
    addresses: dict[int, list[str]] = {}
    for message in (_decoded(ifaddrmsg, body) for body in tables["addresses"]):
        text = f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
        addresses.setdefault(message["index"], []).append(text)
    qdiscs: dict[int, list[str]] = {}
    for message in (_decoded(tcmsg, body) for body in tables["qdiscs"]):
        qdiscs.setdefault(message["index"], []).append(message.get_attr("TCA_KIND"))
    wlans = {w.index: w for w in map(nl80211.parse_interface, tables.get("wlans", []))}
    heard = {i: tuple(filter(None, map(nl80211.parse_bss, tables.get(f"bss {i}", [])))) for i in wlans}
    rows = []
    for body in tables["links"]:
        message, tunnel = _decoded(ifinfmsg, body), amt.parse_link(body)
        stats = message.get_attr("IFLA_STATS64") or {}
        if not isinstance(stats, dict):  # what pyroute2 makes of one that is too short
            raise ValueError("IFLA_STATS64")
        rows.append(
            Seen(
                name=message.get_attr("IFLA_IFNAME"),
                state=str(message.get_attr("IFLA_OPERSTATE")).lower(),
                mtu=message.get_attr("IFLA_MTU"),
                mac=message.get_attr("IFLA_ADDRESS") or "",
                addresses=tuple(addresses.get(message["index"], ())),
                qdisc=tuple(qdiscs.get(message["index"], ())),
                rx_bytes=stats.get("rx_bytes", 0),
                tx_bytes=stats.get("tx_bytes", 0),
                amt=str(tunnel or ""),
                links=wlans[message["index"]].links if message["index"] in wlans else (),
                heard=heard.get(message["index"], ()),
                mld=message["index"] in wlans and wlans[message["index"]].mlo,
            )
        )
    return rows


def _decoded(kind: type, body: bytes) -> ifinfmsg:
    message = kind(struct.pack("=IHHII", 16 + len(body), 0, 0, 0, 0) + body)
    message.decode()
    return message
