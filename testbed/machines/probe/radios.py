"""Find out whether mac80211_hwsim makes radios, with or without MLO, by making one in the present namespace."""

from __future__ import annotations

import errno
import os
import socket

from testbed.drivers import hwsim, nl80211
from testbed.linux import netlink, wire
from testbed.linux.wire import Message, text


def made(mlo: bool) -> str:
    """Make a radio without an interface, look at its wiphy and remove it; OSError says what is missing.

    It is gone before this returns, with the socket if this process dies, and with the namespace at last.
    """
    name = f"testbed-probe{os.getpid()}"
    with netlink.connect(wire.NETLINK_GENERIC) as sock:
        family = _family(sock, hwsim.FAMILY)
        _request(sock, family, hwsim.NEW_RADIO, hwsim.radio(name, mlo))
        try:
            told = _wiphy(sock, name)
        finally:
            _request(sock, family, hwsim.DEL_RADIO, text(hwsim.RADIO_NAME, name))
    if mlo and nl80211.MLO_SUPPORT not in told:
        raise OSError(errno.EOPNOTSUPP, "a radio was made with MLO_SUPPORT, and nl80211 reports none of its wiphy")
    return "a radio was made" + (", and nl80211 reports MLO_SUPPORT of it" if mlo else "")


def _family(sock: socket.socket, name: str) -> int:
    if not (found := netlink.family(sock, name)):
        raise OSError(errno.ENOENT, f"there is no generic netlink family {name}")
    return found


def _request(sock: socket.socket, family: int, cmd: int, body: bytes) -> None:
    for refusal in netlink.transact(sock, [Message(0, 0, hwsim.command(cmd, body))], family):
        raise OSError(refusal.errno, f"hwsim refuses command {cmd}: {refusal}")


def _wiphy(sock: socket.socket, name: str) -> frozenset[int]:
    """Return the attributes that nl80211 reports of a wiphy, in several messages (SPLIT_WIPHY_DUMP)."""
    entries = netlink.dump(sock, _family(sock, nl80211.FAMILY), nl80211.GET_WIPHYS)
    found = frozenset[int]().union(*(w.told for w in map(nl80211.parse_wiphy, entries) if w.name == name))
    if not found:
        raise OSError(errno.ENODEV, f"hwsim made a radio, and nl80211 lists no wiphy {name}")
    return found
