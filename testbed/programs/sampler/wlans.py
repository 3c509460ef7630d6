"""The links of wireless interfaces and their events, read by nl80211 through sockets of their namespaces."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from msgspec.structs import asdict

from testbed.drivers import nl80211
from testbed.linux import netlink, uapi, wire

_NAMES = {
    nl80211.CONNECT: "connect",
    nl80211.DISCONNECT: "disconnect",
    nl80211.CH_SWITCH_NOTIFY: "channel_switch",
    nl80211.LINKS_REMOVED: "links_removed",
}


def wlans(sock: socket.socket, family: int) -> dict[str, dict[str, Any]]:
    """Return every wireless interface with its links; a station's have signal (dBm) and age of the last beacon (ms)."""
    interfaces = {}
    for wlan in map(nl80211.parse_interface, netlink.dump(sock, family, nl80211.GET_INTERFACES)):
        links = [asdict(link) for link in wlan.links]
        if wlan.station:
            bss = {b.link_id if wlan.mlo else 0: b for b in _associated(sock, family, wlan.index)}
            for link in links:
                if (heard := bss.get(link["id"])) is not None:
                    link |= {"bssid": heard.bssid, "signal": heard.signal, "seen_ms": heard.seen_ms}
        interfaces[wlan.name] = {"mac": wlan.mac, "mlo": wlan.mlo, "station": wlan.station, "links": links}
    return interfaces


def _associated(sock: socket.socket, family: int, index: int) -> Iterator[nl80211.Bss]:
    for entry in netlink.dump(sock, family, nl80211.get_scan(index)):
        if (bss := nl80211.parse_bss(entry)) is not None:
            yield bss


def listen() -> socket.socket:
    """Open a socket in this process's namespace that receives nl80211's events of links."""
    sock = netlink.connect(wire.NETLINK_GENERIC)
    for name, number in netlink.groups(sock, nl80211.FAMILY).items():
        if name in ("mlme", "config"):
            sock.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_ADD_MEMBERSHIP, number)
    sock.setblocking(False)
    return sock


def events(sock: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield the events that have arrived: event, index of the interface, link IDs, MHz."""
    for data in netlink.heard(sock):
        for _, _, _, entry in wire.messages(data or b""):
            told = nl80211.parse_event(entry)
            if (name := _NAMES.get(told.command)) is not None:
                yield {
                    "event": name,
                    "index": told.index,
                    "links": list(told.links),
                    "freq": told.freq,
                    "status": told.status,
                }
