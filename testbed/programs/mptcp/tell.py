"""What `testbed mptcp` lists: the connections, subflows and addresses of the node that this process is in."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from testbed.drivers import mptcp, mptcp_pm
from testbed.errors import LabError
from testbed.linux import inet_diag, netlink, uapi, wire
from testbed.linux.inet_diag import Subflow
from testbed.programs.mptcp import asking, events, listing, recovery
from testbed.programs.mptcp.listing import Local, Row, Told
from testbed.programs.mptcp.log import heard
from testbed.programs.mptcp.state import State

_PM_TYPE = Path("/proc/sys/net/mptcp/pm_type")  # 1: a program in user space
_ROOM = 4 << 20  # bytes of events that may wait


def rows(what: str) -> Iterator[Row]:
    """Yield a row for each connection, subflow or address, or with `monitor` for each event as it comes."""
    return _monitor() if what == "monitor" else _listed(what)


def _listed(what: str) -> Iterator[Row]:
    with netlink.connect(wire.NETLINK_SOCK_DIAG) as diag:
        found = inet_diag.subflows(diag)
        known = asking.known()
        known = _seen(diag) if known is None else known
    if what == "connections":
        return listing.connections(found, known)
    if what == "subflows":
        return listing.subflows(found)
    return listing.addresses(found, known, _local(found))


def _seen(diag: socket.socket) -> list[Told]:
    """Return what the kernel's tables say where no program of ours manages the paths."""
    state = State()
    recovery.recover(state, diag)
    return listing.told(state.connections.values())


def _local(found: Sequence[Subflow]) -> list[Local]:
    """Return this host's addresses: the endpoints of the kernel's path manager, or those of each connection."""
    with netlink.connect(wire.NETLINK_GENERIC) as sock:
        family = events.family(sock)
        if not _managed():
            return _dumped(sock, family, mptcp.command(uapi.MPTCP_PM_CMD_GET_ADDR), 0)
        if uapi.MPTCP_PM_ATTR_TOKEN not in netlink.dumps_by(sock, family, uapi.MPTCP_PM_CMD_GET_ADDR):
            return []  # before Linux 6.9 the kernel would list its own endpoints
        rows = []
        for token in dict.fromkeys(s.token for s in found):
            rows += _dumped(sock, family, mptcp_pm.get_addresses(token), token)
        return rows


def _dumped(sock: socket.socket, family: int, body: bytes, token: int) -> list[Local]:
    try:
        entries = netlink.dump(sock, family, body)
    except LabError:
        if not token:
            raise
        return []  # a connection that has just ended, or one of the kernel's path manager
    return [Local(*mptcp.parse_endpoint(e), token) for e in entries]


def _managed() -> bool:
    return _PM_TYPE.exists() and _PM_TYPE.read_text().strip() == "1"


def _monitor() -> Iterator[Row]:
    """Yield events as they come: those of the manager's log, with its commands, or the kernel's own."""
    if (pipe := asking.follow()) is not None:
        yield {"t": time.monotonic(), "manager": "testbed's: its events and its commands follow"}
        with open(pipe, "rb") as log:
            for line in log:
                yield msgspec.json.decode(line)
        raise LabError("the path manager has ended")
    with netlink.connect(wire.NETLINK_GENERIC) as commands:
        family = events.family(commands)
        sock = events.listen(commands, _ROOM)
    none = "none: from now on the kernel accepts joins, since somebody listens"
    yield {"t": time.monotonic(), "manager": none if _managed() else "the kernel's: its events follow"}
    while True:
        select.select([sock], [], [])
        for event in events.heard(sock, family):
            lost = {"event": "lost events", "kernel": "ENOBUFS"}
            yield {"t": time.monotonic(), **(lost if event is None else heard(event))}
