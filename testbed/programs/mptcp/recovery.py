"""What a path manager that starts late, or lost events, takes from the kernel's own tables (inet_diag)."""

from __future__ import annotations

import socket
from pathlib import Path

from testbed.drivers.facts import ports
from testbed.linux import inet_diag
from testbed.linux.inet_diag import Subflow as Socket
from testbed.programs.mptcp.state import Connection, State, Subflow

_LIVE = ("ESTAB",)


def recover(state: State, diag: socket.socket) -> None:
    """Make the state that of the kernel: connections and subflows are listed, addresses of the peer only if used."""
    found: dict[int, list[Socket]] = {}
    for s in inet_diag.subflows(diag):
        if s.state in _LIVE and s.token:
            found.setdefault(s.token, []).append(s)
    served = ports(_text(f"/proc/thread-self/net/{name}") for name in ("tcp", "tcp6"))
    state.connections = {
        token: taken(state.connections.get(token), token, sockets, served) for token, sockets in found.items()
    }


def taken(known: Connection | None, token: int, sockets: list[Socket], served: set[int]) -> Connection:
    """Return a connection as its sockets show it (pure); `served` are the ports that have a listener here."""
    # Only the first subflow was opened without MP_JOIN, and thereby has ID 0 on both sides.
    flows = [_subflow(s) for s in sorted(sockets, key=lambda s: (s.local_id, s.remote_id))]
    if known is None:
        known = Connection(token, flows[0], flows[0].local_port in served, established=True, late=True)
    known.established = True  # where the event of that was lost: a subflow that is established has one
    known.subflows = {f.ends(): f for f in flows}
    known.opening = []
    known.tried |= {f.local for f in flows}
    for flow in flows:
        if flow.remote_id:
            known.remotes.setdefault(flow.remote_id, (flow.remote, flow.remote_port))
            known.used.add(flow.remote_id)
    return known


def _subflow(s: Socket) -> Subflow:
    return Subflow(s.local, s.local_port, s.remote, s.remote_port, s.local_id, s.remote_id, s.backup)


def _text(file: str) -> str:
    path = Path(file)
    return path.read_text() if path.exists() else ""
