"""Whether mac80211_hwsim makes a radio, and one that knows MLO: tried in the namespace that this process is in.

Sources: drivers/net/wireless/virtual/mac80211_hwsim.h, include/uapi/linux/nl80211.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from testbed import netlink, wire
from testbed.wire import Message, attr, text, u32

_NEW_RADIO, _DEL_RADIO, _GET_WIPHY = 4, 5, 1
_CHANNELS, _DESTROY_ON_CLOSE, _RADIO_NAME, _NO_VIF, _MLO_SUPPORT = 9, 16, 17, 18, 25
_WIPHY_NAME, _SPLIT_DUMP, _WIPHY_MLO_SUPPORT = 2, 174, 315


def made(mlo: bool) -> str:
    """Make a radio without an interface, look at its wiphy, remove it; OSError says what was not there.

    It is gone before this returns, with the socket if this process dies, and with the namespace at last.
    """
    name = f"testbed-probe{os.getpid()}"
    with netlink.connect(wire.NETLINK_GENERIC) as sock:
        hwsim = _family(sock, "MAC80211_HWSIM")
        wanted = text(_RADIO_NAME, name) + u32(_CHANNELS, 1) + attr(_NO_VIF, b"") + attr(_DESTROY_ON_CLOSE, b"")
        _request(sock, hwsim, _NEW_RADIO, wanted + (attr(_MLO_SUPPORT, b"") if mlo else b""))
        try:
            flags = _wiphy(sock, name)
        finally:
            _request(sock, hwsim, _DEL_RADIO, text(_RADIO_NAME, name))
    if mlo and _WIPHY_MLO_SUPPORT not in flags:
        raise OSError(errno.EOPNOTSUPP, "a radio was made with MLO_SUPPORT, and nl80211 reports none of its wiphy")
    return "a radio was made" + (", and nl80211 reports MLO_SUPPORT of it" if mlo else "")


def _family(sock: socket.socket, name: str) -> int:
    if not (found := netlink.family(sock, name)):
        raise OSError(errno.ENOENT, f"there is no generic netlink family {name}")
    return found


def _command(cmd: int, body: bytes) -> bytes:
    return struct.pack("=BBH", cmd, 1, 0) + body


def _request(sock: socket.socket, family: int, cmd: int, body: bytes) -> None:
    for refusal in netlink.transact(sock, [Message(0, 0, _command(cmd, body))], family):
        # NEW_RADIO answers with the radio's number in place of an error: that is a refusal only below zero.
        if refusal.errno > 0:
            raise OSError(refusal.errno, f"hwsim refuses command {cmd}: {refusal}")


def _wiphy(sock: socket.socket, name: str) -> set[int]:
    """Return which attributes nl80211 reports of a wiphy; it takes several messages to tell all (SPLIT_WIPHY_DUMP)."""
    found: set[int] = set()
    for entry in netlink.dump(sock, _family(sock, "nl80211"), _command(_GET_WIPHY, attr(_SPLIT_DUMP, b""))):
        seen = wire.attributes(entry, 4)
        if seen.get(_WIPHY_NAME, b"").rstrip(b"\0").decode() == name:
            found |= seen.keys()
    if not found:
        raise OSError(errno.ENODEV, f"hwsim made a radio, and nl80211 lists no wiphy {name}")
    return found
