"""The kernel's events of MPTCP, for those who may hear them."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from testbed.drivers import mptcp, mptcp_pm
from testbed.drivers.mptcp_pm import Event
from testbed.errors import LabError
from testbed.linux import netlink, wire


def family(sock: socket.socket) -> int:
    """Return the message type of the family; raise LabError where the kernel has none."""
    if not (found := netlink.family(sock, mptcp.FAMILY)):
        raise LabError(f"this kernel has no generic netlink family {mptcp.FAMILY}")
    return found


def listen(commands: socket.socket, room: int) -> socket.socket:
    """Open a socket that hears the events of this process's network namespace."""
    group = netlink.groups(commands, mptcp.FAMILY)[mptcp_pm.GROUP]
    try:
        return netlink.listen(wire.NETLINK_GENERIC, (group,), room)
    except PermissionError as e:
        why = "the kernel tells them to processes with CAP_NET_ADMIN in the network namespace"
        raise LabError(f"events of MPTCP: {e.strerror}: {why}") from e


def heard(sock: socket.socket, kind: int) -> Iterator[Event | None]:
    """Yield the events that have arrived; None where the kernel dropped some (ENOBUFS)."""
    for data in netlink.heard(sock):
        if data is None:
            yield None
            continue
        for got, _, _, entry in wire.messages(data):
            if got == kind and (event := mptcp_pm.parse_event(entry)) is not None:
                yield event
