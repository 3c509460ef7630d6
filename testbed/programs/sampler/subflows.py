"""The subflows of a node, and the last counters of those that have ended: no dump has these any more."""

from __future__ import annotations

import socket
import time
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from testbed.linux import inet_diag, netlink, wire

ESTABLISHED = "ESTAB"
_MOST = 1000  # connections of plain TCP that a sample has
_Ends = inet_diag.Ends


class Subflows(Struct):
    """The sockets of a node's namespace, its subflows at the last look, and what ended since the last sample.

    `gone` has those that vanished before the kernel said that they ended: packets in a queue of the host may keep a
    socket until later. `opened` and `closed` have when (CLOCK_MONOTONIC, seconds) they were first and last seen, and
    `plain` the connections of plain TCP since the last sample.
    """

    diag: socket.socket
    ended: socket.socket
    live: dict[_Ends, inet_diag.Subflow] = {}
    closed: list[tuple[inet_diag.Subflow, float]] = []
    gone: dict[_Ends, inet_diag.Subflow] = {}
    opened: dict[_Ends, float] = {}
    plain: set[_Ends] = set()


def opened() -> Subflows:
    """Open the sockets in the namespace that this process is in."""
    return Subflows(netlink.connect(wire.NETLINK_SOCK_DIAG), inet_diag.listen())


def look(node: Subflows) -> None:
    """Read the subflows, and keep what the others had counted at the end.

    The kernel clears the counters of a first subflow before it ends that (net/mptcp/protocol.c:
    __mptcp_subflow_disconnect): then the last look at it counts.
    """
    now = time.monotonic()
    subflows, plain = inet_diag.sockets(node.diag)
    node.plain.update(plain[:_MOST])
    found = {s.ends: s for s in subflows}
    for s in inet_diag.ended(node.ended):
        before = found.pop(s.ends, None) or node.live.get(s.ends)
        known = before if before is not None else node.gone.pop(s.ends, None)
        if known is not None:
            node.live.pop(s.ends, None)
            last = {"token": known.token, "here": known.here, "backup": known.backup}
            node.closed.append((replace(s, **last), now))
    for ends in node.live.keys() - found.keys():
        node.closed.append((node.live[ends], now))
        node.gone[ends] = node.live[ends]
    for ends, s in found.items():
        if s.state == ESTABLISHED:
            node.opened.setdefault(ends, now)
    node.live = found


def sample(node: Subflows) -> dict[str, list[Any]]:
    """Return the subflows, those that ended since the last sample, and the ports of connections of plain TCP."""
    look(node)
    closed, node.closed = node.closed, []
    live = [asdict(s) | _opened(node, s) for s in node.live.values()]
    ended = [asdict(s) | _opened(node, s) | {"closed": t} for s, t in closed]
    for s, _ in closed:
        if s.ends not in node.live and s.ends not in node.gone:
            node.opened.pop(s.ends, None)  # its ports may be used again
    plain = [(local_port, remote_port) for _, local_port, _, remote_port in sorted(node.plain)[:_MOST]]
    node.plain = set()
    return {"subflows": live, "closed": ended, "plain": plain}


def _opened(node: Subflows, s: inet_diag.Subflow) -> dict[str, float]:
    return {"opened": node.opened[s.ends]} if s.ends in node.opened else {}
