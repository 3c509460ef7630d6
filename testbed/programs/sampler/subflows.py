"""The subflows of a node, and the last counters of those that have ended: no dump has these any more."""

from __future__ import annotations

import socket
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict, replace

from testbed.linux import inet_diag, netlink, wire

_Ends = tuple[str, int, str, int]


class Subflows(Struct):
    """The sockets of a node's namespace, its subflows at the last look, and what ended since the last sample.

    `gone` has the tokens of those that vanished before the kernel said that they ended: packets in a queue of the host
    may keep a socket until later.
    """

    diag: socket.socket
    ended: socket.socket
    live: dict[_Ends, inet_diag.Subflow] = {}
    closed: list[inet_diag.Subflow] = []
    gone: dict[_Ends, int] = {}


def opened() -> Subflows:
    """Open the sockets in the namespace that this process is in."""
    return Subflows(netlink.connect(wire.NETLINK_SOCK_DIAG), inet_diag.listen())


def look(node: Subflows) -> None:
    """Read the subflows, and keep what the others had counted at the end.

    The kernel clears the counters of a first subflow before it ends that (net/mptcp/protocol.c:
    __mptcp_subflow_disconnect): then the last look at it counts.
    """
    found = {s.ends: s for s in inet_diag.subflows(node.diag)}
    for s in inet_diag.ended(node.ended):
        before = found.pop(s.ends, None) or node.live.get(s.ends)
        token = before.token if before is not None else node.gone.pop(s.ends, None)
        if token is not None:
            node.live.pop(s.ends, None)
            node.closed.append(replace(s, token=token))
    for ends in node.live.keys() - found.keys():
        node.closed.append(node.live[ends])
        node.gone[ends] = node.live[ends].token
    node.live = found


def sample(node: Subflows) -> dict[str, list[dict[str, Any]]]:
    """Return the subflows, and those that ended since the last sample."""
    look(node)
    closed, node.closed = node.closed, []
    return {"subflows": [asdict(s) for s in node.live.values()], "closed": [asdict(s) for s in closed]}
