"""MPTCP subflows, read by inet_diag: every TCP socket that carries MPTCP, with its bytes, RTT and window.

All subflows of a connection have the same local token.
Sources: include/uapi/linux/inet_diag.h, tcp.h (struct tcp_info), mptcp.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator

from msgspec import Struct

from testbed.linux import netlink, tcp_info, uapi, wire
from testbed.linux.host import host

_STATES = {
    uapi.TCP_ESTABLISHED: "ESTAB",
    uapi.TCP_SYN_SENT: "SYN_SENT",
    uapi.TCP_SYN_RECV: "SYN_RECV",
    uapi.TCP_FIN_WAIT1: "FIN_WAIT1",
    uapi.TCP_FIN_WAIT2: "FIN_WAIT2",
    uapi.TCP_CLOSE_WAIT: "CLOSE_WAIT",
    uapi.TCP_LAST_ACK: "LAST_ACK",
    uapi.TCP_CLOSING: "CLOSING",
}
_ALL = 0xFFF
Ends = tuple[str, int, str, int]  # local address and port, remote address and port
_HERE = uapi.MPTCP_SUBFLOW_FLAG_MCAP_LOC | uapi.MPTCP_SUBFLOW_FLAG_JOIN_LOC
_BACKUP = uapi.MPTCP_SUBFLOW_FLAG_BKUP_REM | uapi.MPTCP_SUBFLOW_FLAG_BKUP_LOC


class Subflow(Struct, frozen=True):
    """One TCP socket of an MPTCP connection; times in milliseconds, counts in bytes and segments.

    `mss` is the payload of a full segment, `unacked` are segments on the way, `dsack_dups` those that arrived twice.
    `here` says that this host opened it.
    """

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
    mss: int = 0
    unacked: int = 0
    dsack_dups: int = 0
    bytes_retrans: int = 0
    here: bool = False

    @property
    def ends(self) -> Ends:
        """Return both addresses and ports."""
        return self.local, self.local_port, self.remote, self.remote_port


def _request(family: int, protocol: int) -> bytes:
    """Encode struct inet_diag_req_v2 for a dump of all states but listening and time-wait."""
    states = _ALL & ~(1 << uapi.TCP_LISTEN | 1 << uapi.TCP_TIME_WAIT | 1 << uapi.TCP_CLOSE)
    extensions = 1 << (uapi.INET_DIAG_INFO - 1)
    head = uapi.INET_DIAG_REQ_V2.pack(family, protocol & 0xFF, extensions, states, bytes(48))
    return head + (wire.u32(uapi.INET_DIAG_REQ_PROTOCOL, protocol) if protocol > 255 else b"")


def mptcp_sockets(family: int) -> int:
    """Count the MPTCP connections of this namespace; raise LabError if the kernel lacks MPTCP inet_diag."""
    with netlink.connect(wire.NETLINK_SOCK_DIAG) as sock:
        return len(netlink.dump(sock, uapi.SOCK_DIAG_BY_FAMILY, _request(family, uapi.IPPROTO_MPTCP)))


def subflows(sock: socket.socket) -> list[Subflow]:
    """Return the subflows in the namespace of a NETLINK_SOCK_DIAG socket."""
    return sockets(sock)[0]


def sockets(sock: socket.socket) -> tuple[list[Subflow], list[Ends]]:
    """Return the subflows in the namespace of a NETLINK_SOCK_DIAG socket, and the ends of connections of plain TCP."""
    rows: list[Subflow] = []
    plain: list[Ends] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in netlink.dump(sock, uapi.SOCK_DIAG_BY_FAMILY, _request(family, socket.IPPROTO_TCP)):
            if (subflow := _subflow(entry)) is not None:
                rows.append(subflow)
            elif (other := _subflow(entry, plain=True)) is not None and other.state == "ESTAB":
                plain.append(other.ends)
    return rows, plain


def abort(sock: socket.socket) -> None:
    """Reset every connection in the namespace of a NETLINK_SOCK_DIAG socket, as `ss -K` does.

    A kernel without CONFIG_INET_DIAG_DESTROY refuses this; the connections then end by their own timers.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        for entry in netlink.dump(sock, uapi.SOCK_DIAG_BY_FAMILY, _request(family, socket.IPPROTO_TCP)):
            identity = uapi.INET_DIAG_MSG.unpack_from(entry)[4]  # ports, addresses, interface, cookie
            body = uapi.INET_DIAG_REQ_V2.pack(family, socket.IPPROTO_TCP, 0, _ALL, identity)
            netlink.transact(sock, [wire.Message(uapi.SOCK_DESTROY, 0, body)])


def listen() -> socket.socket:
    """Open a socket in this process's namespace that is told of each TCP socket that ends (ss -E)."""
    ends = (uapi.SKNLGRP_INET_TCP_DESTROY, uapi.SKNLGRP_INET6_TCP_DESTROY)
    return netlink.listen(wire.NETLINK_SOCK_DIAG, ends)


def ended(sock: socket.socket) -> Iterator[Subflow]:
    """Yield the TCP sockets that have ended, with their last counters; the kernel no longer says whose they were."""
    for data in netlink.heard(sock):
        for _, _, _, entry in wire.messages(data or b""):
            if (found := _subflow(entry, plain=True)) is not None:
                yield found


@wire.decoder
def _subflow(entry: bytes, plain: bool = False) -> Subflow | None:
    """Decode a TCP socket; None for one that is no subflow, unless also `plain` ones are asked for."""
    fields = wire.attributes(entry, uapi.INET_DIAG_MSG.size)
    ulp = wire.attributes(fields.get(uapi.INET_DIAG_ULP_INFO, b""))
    if uapi.INET_DIAG_INFO not in fields or not (plain or uapi.INET_ULP_INFO_MPTCP in ulp):
        return None
    mptcp = wire.attributes(ulp.get(uapi.INET_ULP_INFO_MPTCP, b""))
    family, state, _, _, identity, *_ = uapi.INET_DIAG_MSG.unpack_from(entry)
    local_port, remote_port, local, remote = struct.unpack_from("!HH16s16s", identity)  # struct inet_diag_sockid
    size = 16 if family == socket.AF_INET6 else 4
    return Subflow(
        token=_number(mptcp, uapi.MPTCP_SUBFLOW_ATTR_TOKEN_LOC),
        local=host(local[:size]),
        remote=host(remote[:size]),
        local_port=local_port,
        remote_port=remote_port,
        local_id=_number(mptcp, uapi.MPTCP_SUBFLOW_ATTR_ID_LOC),
        remote_id=_number(mptcp, uapi.MPTCP_SUBFLOW_ATTR_ID_REM),
        backup=bool(_number(mptcp, uapi.MPTCP_SUBFLOW_ATTR_FLAGS) & _BACKUP),
        here=bool(_number(mptcp, uapi.MPTCP_SUBFLOW_ATTR_FLAGS) & _HERE),
        state=_STATES.get(state, str(state)),
        **tcp_info.figures(fields[uapi.INET_DIAG_INFO]),
    )


def _number(attributes: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(attributes.get(kind, b"\0"), sys.byteorder)
