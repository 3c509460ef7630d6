"""Subflows by inet_diag: every TCP socket that carries MPTCP, with its connection, bytes, RTT and window.

Sources: include/uapi/linux/inet_diag.h, tcp.h (struct tcp_info), mptcp.h. The initial subflow and the joined
ones belong together by the local token.
"""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import ip_address

from msgspec import Struct

from testbed.linux import netlink, wire

IPPROTO_MPTCP = 262
_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_INFO, _ULP_INFO, _ULP_MPTCP = 2, 19, 3
_LISTEN, _TIME_WAIT, _CLOSE = 10, 6, 7
_STATES = {
    1: "ESTAB",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    11: "CLOSING",
}


class Subflow(Struct, frozen=True):
    """One TCP socket of an MPTCP connection; times in milliseconds, counts in bytes and segments."""

    token: int
    local: str
    remote: str
    local_port: int
    remote_port: int
    local_id: int
    remote_id: int
    backup: bool
    state: str
    rtt_ms: float
    cwnd: int
    retransmits: int
    bytes_sent: int
    bytes_acked: int
    bytes_received: int


def _request(family: int, protocol: int) -> bytes:
    """Encode struct inet_diag_req_v2 for a dump of all states but listening and time-wait."""
    states = 0xFFF & ~(1 << _LISTEN | 1 << _TIME_WAIT | 1 << _CLOSE)
    head = struct.pack("=BBBxI", family, protocol & 0xFF, 1 << (_INFO - 1), states) + bytes(48)
    # A protocol number above 255 travels in INET_DIAG_REQ_PROTOCOL.
    return head + (wire.u32(3, protocol) if protocol > 255 else b"")


def mptcp_sockets(family: int) -> int:
    """Return how many MPTCP connections this namespace has; LabError when the kernel lacks MPTCP inet_diag."""
    with netlink.connect(wire.NETLINK_SOCK_DIAG) as sock:
        return len(netlink.dump(sock, _SOCK_DIAG_BY_FAMILY, _request(family, IPPROTO_MPTCP)))


def subflows(sock: socket.socket) -> list[Subflow]:
    """Return the subflows in the namespace that a NETLINK_SOCK_DIAG socket belongs to."""
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in netlink.dump(sock, _SOCK_DIAG_BY_FAMILY, _request(family, socket.IPPROTO_TCP)):
            if (subflow := _subflow(entry)) is not None:
                found.append(subflow)
    return found


def abort(sock: socket.socket) -> None:
    """Reset every connection in the namespace of a NETLINK_SOCK_DIAG socket, as `ss -K` does.

    A kernel without CONFIG_INET_DIAG_DESTROY refuses; they then end by their own timers.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in netlink.dump(sock, _SOCK_DIAG_BY_FAMILY, _request(family, socket.IPPROTO_TCP)):
            # struct inet_diag_req_v2 with the identity of struct inet_diag_msg: ports, addresses, cookie
            body = struct.pack("=BBxxI", family, socket.IPPROTO_TCP, 0xFFF) + entry[4:52]
            netlink.transact(sock, [wire.Message(_SOCK_DESTROY, 0, body)])


@wire.decoder
def _subflow(entry: bytes) -> Subflow | None:
    attributes = wire.attributes(entry, 72)
    ulp = wire.attributes(attributes.get(_ULP_INFO, b""))
    if _ULP_MPTCP not in ulp or _INFO not in attributes:
        return None
    mptcp = wire.attributes(ulp[_ULP_MPTCP])
    info = attributes[_INFO].ljust(248, b"\0")
    size = 16 if entry[0] == socket.AF_INET6 else 4
    local_port, remote_port = struct.unpack_from("!HH", entry, 4)
    flags = _number(mptcp, 8)
    acked, received = struct.unpack_from("=QQ", info, 120)
    return Subflow(
        token=_number(mptcp, 2),
        local=_address(entry[8 : 8 + size]),
        remote=_address(entry[24 : 24 + size]),
        local_port=local_port,
        remote_port=remote_port,
        local_id=_number(mptcp, 10),
        remote_id=_number(mptcp, 9),
        backup=bool(flags & 0b110000),  # MPTCP_SUBFLOW_FLAG_BKUP_REM and _BKUP_LOC
        state=_STATES.get(entry[1], str(entry[1])),
        rtt_ms=struct.unpack_from("=I", info, 68)[0] / 1e3,
        cwnd=struct.unpack_from("=I", info, 80)[0],
        retransmits=struct.unpack_from("=I", info, 100)[0],
        bytes_sent=struct.unpack_from("=Q", info, 200)[0],
        bytes_acked=acked,
        bytes_received=received,
    )


def _number(attributes: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(attributes.get(kind, b"\0"), sys.byteorder)


def _address(raw: bytes) -> str:
    found = ip_address(raw)
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)
