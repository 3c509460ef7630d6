"""The path manager in user space: events of connections, and commands (include/uapi/linux/mptcp_pm.h, RFC 8684).

Commands and events need a socket each: their numbers overlap, and their attributes are of two different spaces. Ports
are in host order in commands and big-endian in events; a token is the local side's.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from msgspec import Struct

from testbed.drivers.mptcp import FLAGS, address, command
from testbed.linux import uapi
from testbed.linux.wire import attributes, decoder, nest, u8, u16, u32
from testbed.steps import Request

GROUP = "mptcp_pm_events"
SOCKET = "\0testbed-path-manager"
# Younger than the headers of the oldest distribution that has a path manager in user space (Linux 6.1).
_LISTENER_CREATED, _LISTENER_CLOSED = 15, 16  # Linux 6.2
_DENY_JOIN_ID0, _SERVER_SIDE = 1, 2  # MPTCP_PM_EV_FLAG_*, Linux 6.18
Kind = Literal[
    "new_connection",
    "connection_established",
    "conn_closed",
    "new_addr",
    "addr_removed",
    "join_attempt",
    "new_subflow",
    "subflow_closed",
    "subflow_backup",
    "listener_created",
    "listener_closed",
]
# The words of the path-management netlink RFC (2018), and one for each event that it lacks, with the kernel's names.
EVENTS: dict[int, tuple[Kind, str]] = {
    uapi.MPTCP_EVENT_CREATED: ("new_connection", "MPTCP_EVENT_CREATED"),
    uapi.MPTCP_EVENT_ESTABLISHED: ("connection_established", "MPTCP_EVENT_ESTABLISHED"),
    uapi.MPTCP_EVENT_CLOSED: ("conn_closed", "MPTCP_EVENT_CLOSED"),
    uapi.MPTCP_EVENT_ANNOUNCED: ("new_addr", "MPTCP_EVENT_ANNOUNCED"),
    uapi.MPTCP_EVENT_REMOVED: ("addr_removed", "MPTCP_EVENT_REMOVED"),
    uapi.MPTCP_EVENT_SUB_ESTABLISHED: ("new_subflow", "MPTCP_EVENT_SUB_ESTABLISHED"),
    uapi.MPTCP_EVENT_SUB_CLOSED: ("subflow_closed", "MPTCP_EVENT_SUB_CLOSED"),
    uapi.MPTCP_EVENT_SUB_PRIORITY: ("subflow_backup", "MPTCP_EVENT_SUB_PRIORITY"),
    _LISTENER_CREATED: ("listener_created", "MPTCP_EVENT_LISTENER_CREATED"),
    _LISTENER_CLOSED: ("listener_closed", "MPTCP_EVENT_LISTENER_CLOSED"),
}
KERNEL = dict(EVENTS.values())


class Event(Struct, frozen=True, omit_defaults=True):
    """An event of the kernel, or a join on its way in; what the kernel did not say is None, an address "" and a port 0.

    `backup` is what the peer asked for. `error` is an errno, `reset_reason` a code of MP_TCPRST (RFC 8684, 3.6).
    """

    event: Kind
    token: int = 0
    local: str = ""
    local_port: int = 0
    remote: str = ""
    remote_port: int = 0
    local_id: int | None = None
    remote_id: int | None = None
    backup: bool | None = None
    server: bool | None = None
    deny_join_id0: bool | None = None
    error: int | None = None
    ifindex: int | None = None
    reset_reason: int | None = None

    def ends(self) -> tuple[str, int, str, int]:
        """Return the local address and port, and the remote ones."""
        return self.local, self.local_port, self.remote, self.remote_port


@decoder
def parse_event(entry: bytes) -> Event | None:
    """Decode an event; None for a number that this version does not know."""
    number, _, _ = uapi.GENLMSGHDR.unpack_from(entry)
    if number not in EVENTS:
        return None
    kind = EVENTS[number][0]
    fields = attributes(entry, uapi.GENLMSGHDR.size)

    def small(attribute: int) -> int | None:
        return fields[attribute][0] if attribute in fields else None

    def wide(attribute: int) -> int | None:
        return int(struct.unpack("=i", fields[attribute])[0]) if attribute in fields else None

    def port(attribute: int) -> int:
        return int(struct.unpack("!H", fields[attribute])[0]) if attribute in fields else 0

    flags = struct.unpack("=H", fields[uapi.MPTCP_ATTR_FLAGS])[0] if uapi.MPTCP_ATTR_FLAGS in fields else None
    opened = kind in ("new_connection", "connection_established")
    backup = small(uapi.MPTCP_ATTR_BACKUP)
    # Before Linux 6.18 SERVER_SIDE is always there and 0 or 1, since then it is a flag.
    server = bool(small(uapi.MPTCP_ATTR_SERVER_SIDE) == 1 or (flags or 0) & _SERVER_SIDE)
    return Event(
        kind,
        struct.unpack("=I", fields[uapi.MPTCP_ATTR_TOKEN])[0] if uapi.MPTCP_ATTR_TOKEN in fields else 0,
        _host(fields.get(uapi.MPTCP_ATTR_SADDR4), fields.get(uapi.MPTCP_ATTR_SADDR6)),
        port(uapi.MPTCP_ATTR_SPORT),
        _host(fields.get(uapi.MPTCP_ATTR_DADDR4), fields.get(uapi.MPTCP_ATTR_DADDR6)),
        port(uapi.MPTCP_ATTR_DPORT),
        small(uapi.MPTCP_ATTR_LOC_ID),
        small(uapi.MPTCP_ATTR_REM_ID),
        None if backup is None else bool(backup),
        server if opened else None,
        bool((flags or 0) & _DENY_JOIN_ID0) if opened else None,
        small(uapi.MPTCP_ATTR_ERROR) or None,
        wide(uapi.MPTCP_ATTR_IF_IDX),
        wide(uapi.MPTCP_ATTR_RESET_REASON),
    )


def _host(v4: bytes | None, v6: bytes | None) -> str:
    """Return an address as text; an IPv4-mapped IPv6 address, of an AF_INET6 socket, as the IPv4 address."""
    if v4 is not None:
        return str(IPv4Address(v4))
    if v6 is None:
        return ""
    address = IPv6Address(v6)
    return str(address.ipv4_mapped or address)


class SendAddr(Struct, frozen=True):
    """Announce an address to the peer of a connection (ADD_ADDR); `port` needs a listener of its own there."""

    token: int
    address: str
    id: int
    port: int = 0

    def body(self) -> bytes:
        """Encode MPTCP_PM_CMD_ANNOUNCE."""
        flags = u32(uapi.MPTCP_PM_ADDR_ATTR_FLAGS, FLAGS["signal"])
        given = nest(uapi.MPTCP_PM_ATTR_ADDR, _address(self.address, self.port, self.id), flags)
        return command(uapi.MPTCP_PM_CMD_ANNOUNCE, given, _token(self.token))


class RemoveAddr(Struct, frozen=True):
    """Withdraw an address by its ID (RM_ADDR): the peer closes the subflows to it."""

    token: int
    id: int

    def body(self) -> bytes:
        """Encode MPTCP_PM_CMD_REMOVE."""
        return command(uapi.MPTCP_PM_CMD_REMOVE, _token(self.token), u8(uapi.MPTCP_PM_ATTR_LOC_ID, self.id))


class AddSubflow(Struct, frozen=True):
    """Open a subflow (MP_JOIN) from a local address to a remote one; success means that the SYN was sent."""

    token: int
    local: str
    local_id: int
    remote: str
    remote_port: int
    remote_id: int = 0
    backup: bool = False
    ifindex: int = 0

    def body(self) -> bytes:
        """Encode MPTCP_PM_CMD_SUBFLOW_CREATE."""
        local = _address(self.local, 0, self.local_id)
        local += u32(uapi.MPTCP_PM_ADDR_ATTR_FLAGS, FLAGS["backup"]) if self.backup else b""
        local += u32(uapi.MPTCP_PM_ADDR_ATTR_IF_IDX, self.ifindex) if self.ifindex else b""
        remote = _address(self.remote, self.remote_port, self.remote_id)
        ends = nest(uapi.MPTCP_PM_ATTR_ADDR, local) + nest(uapi.MPTCP_PM_ATTR_ADDR_REMOTE, remote)
        return command(uapi.MPTCP_PM_CMD_SUBFLOW_CREATE, ends, _token(self.token))


class RemoveSubflow(Struct, frozen=True):
    """Close a subflow, named by its four parts."""

    token: int
    local: str
    local_port: int
    remote: str
    remote_port: int

    def body(self) -> bytes:
        """Encode MPTCP_PM_CMD_SUBFLOW_DESTROY."""
        return command(uapi.MPTCP_PM_CMD_SUBFLOW_DESTROY, _ends(self), _token(self.token))


class SetBackup(Struct, frozen=True):
    """Change the priority of a subflow (MP_PRIO)."""

    token: int
    local: str
    local_port: int
    remote: str
    remote_port: int
    backup: bool = True

    def body(self) -> bytes:
        """Encode MPTCP_PM_CMD_SET_FLAGS for one connection."""
        flags = u32(uapi.MPTCP_PM_ADDR_ATTR_FLAGS, FLAGS["backup"] if self.backup else 0)
        return command(uapi.MPTCP_PM_CMD_SET_FLAGS, _ends(self, flags), _token(self.token))


Command = SendAddr | RemoveAddr | AddSubflow | RemoveSubflow | SetBackup
COMMANDS: dict[type[Command], tuple[str, str]] = {
    SendAddr: ("send_addr", "MPTCP_PM_CMD_ANNOUNCE"),
    RemoveAddr: ("remove_addr", "MPTCP_PM_CMD_REMOVE"),
    AddSubflow: ("add_subflow", "MPTCP_PM_CMD_SUBFLOW_CREATE"),
    RemoveSubflow: ("remove_subflow", "MPTCP_PM_CMD_SUBFLOW_DESTROY"),
    SetBackup: ("set_backup", "MPTCP_PM_CMD_SET_FLAGS"),
}


def get_addresses(token: int) -> bytes:
    """Encode MPTCP_PM_CMD_GET_ADDR of one connection (a dump); Linux 6.9 or later."""
    return command(uapi.MPTCP_PM_CMD_GET_ADDR, _token(token))


class Manage(Request, frozen=True):
    """Ask the path manager of a node for one command, for each of its connections; it must answer OK."""

    command: str  # a `Do` of programs/mptcp/state.py as JSON

    def __str__(self) -> str:
        return f"path-manager {self.command}"

    def path(self) -> str:
        """Return the address of its socket, which is abstract: it is one of the network namespace."""
        return SOCKET


def _token(token: int) -> bytes:
    return u32(uapi.MPTCP_PM_ATTR_TOKEN, token)


def _ends(of: RemoveSubflow | SetBackup, flags: bytes = b"") -> bytes:
    """Encode both ends of a subflow that exists."""
    local = nest(uapi.MPTCP_PM_ATTR_ADDR, _address(of.local, of.local_port), flags)
    return local + nest(uapi.MPTCP_PM_ATTR_ADDR_REMOTE, _address(of.remote, of.remote_port))


def _address(host: str, port: int = 0, number: int | None = None) -> bytes:
    """Encode the attributes of an address; without `number` no ID is given, which the kernel takes for 0."""
    return address(host, number) + (u16(uapi.MPTCP_PM_ADDR_ATTR_PORT, port) if port else b"")
