"""The in-kernel MPTCP path manager: endpoints and limits (RFC 8684, ip-mptcp(8), include/uapi/linux/mptcp_pm.h)."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

from testbed.linux import uapi
from testbed.linux.wire import Message, Space, attr, attributes, decoder, nest, u8, u16, u32
from testbed.steps import Probe, Request

FAMILY = "mptcp_pm"
FLAGS = {"signal": 1, "subflow": 2, "backup": 4, "fullmesh": 8, "implicit": 16, "laminar": 32}
LIMIT, HIGHEST = 8, 64  # net/mptcp/pm_kernel.c: MPTCP_PM_ADDR_MAX before Linux 7.2, and since
_VERSION = 1  # MPTCP_PM_VER


def command(cmd: int, *attributes: bytes) -> bytes:
    """Encode a body: struct genlmsghdr and attributes."""
    return uapi.GENLMSGHDR.pack(cmd, _VERSION, 0) + b"".join(attributes)


def address(host: str, number: int | None) -> bytes:
    """Encode the attributes of an address; without `number` no ID is given, which the kernel takes for 0."""
    found = ip_address(host)
    v6 = found.version == 6
    body = u16(uapi.MPTCP_PM_ADDR_ATTR_FAMILY, socket.AF_INET6 if v6 else socket.AF_INET)
    body += u8(uapi.MPTCP_PM_ADDR_ATTR_ID, number) if number is not None else b""
    return body + attr(uapi.MPTCP_PM_ADDR_ATTR_ADDR6 if v6 else uapi.MPTCP_PM_ADDR_ATTR_ADDR4, found.packed)


class EndpointAdd(Request, frozen=True):
    """Add an address that the path manager may use (subflow) or announce (signal); the plan chooses its ID."""

    address: str
    id: int
    flags: tuple[str, ...]
    dev: str = ""
    port: int = 0

    def __str__(self) -> str:
        words = ["ip mptcp endpoint add", self.address]
        words += [f"dev {self.dev}"] if self.dev else []
        words += [f"port {self.port}"] if self.port else []
        return " ".join([*words, f"id {self.id}", *self.flags])

    def encode(self, space: Space) -> Message:
        """Encode; unlike in events, the port is in host order."""
        body = address(self.address, self.id)
        body += u32(uapi.MPTCP_PM_ADDR_ATTR_FLAGS, sum(FLAGS[f] for f in self.flags))
        if self.port:
            body += u16(uapi.MPTCP_PM_ADDR_ATTR_PORT, self.port)
        if self.dev:
            body += u32(uapi.MPTCP_PM_ADDR_ATTR_IF_IDX, space.index(self.dev))
        return Message(0, 0, command(uapi.MPTCP_PM_CMD_ADD_ADDR, nest(uapi.MPTCP_PM_ATTR_ADDR, body)), FAMILY)


class EndpointFlags(Request, frozen=True):
    """Change the flags of an endpoint; the kernel accepts backup and fullmesh (MPTCP_PM_CMD_SET_FLAGS)."""

    endpoint: EndpointAdd

    def __str__(self) -> str:
        flags = [f if f in self.endpoint.flags else f"no{f}" for f in ("backup", "fullmesh")]
        return f"ip mptcp endpoint change id {self.endpoint.id} {' '.join(flags)}"

    def encode(self, space: Space) -> Message:
        """Encode: the same attributes with another command."""
        added = self.endpoint.encode(space)
        return Message(added.kind, 0, bytes((uapi.MPTCP_PM_CMD_SET_FLAGS,)) + added.body[1:], FAMILY)


class EndpointDel(Request, frozen=True):
    """Close the subflows of the address with an ID and withdraw it; 0 is the first subflow's, which has no endpoint."""

    id: int
    address: str

    def __str__(self) -> str:
        return f"ip mptcp endpoint delete id {self.id} {self.address}"

    def encode(self, space: Space) -> Message:
        """Encode; by an ID of 0 the kernel needs the address as well (pm_kernel.c: mptcp_pm_nl_del_addr_doit)."""
        body = nest(uapi.MPTCP_PM_ATTR_ADDR, address(self.address, self.id))
        return Message(0, 0, command(uapi.MPTCP_PM_CMD_DEL_ADDR, body), FAMILY)


class EndpointFlush(Request, frozen=True):
    """Remove all endpoints at once: their subflows end, and all announced addresses are withdrawn."""

    def __str__(self) -> str:
        return "ip mptcp endpoint flush"

    def encode(self, space: Space) -> Message:
        """Encode; the kernel wants an address, and looks at none."""
        return Message(0, 0, command(uapi.MPTCP_PM_CMD_FLUSH_ADDRS, nest(uapi.MPTCP_PM_ATTR_ADDR)), FAMILY)


class LimitsSet(Request, frozen=True):
    """Set how many subflows a connection may have beyond the first, and how many ADD_ADDR it accepts."""

    subflows: int
    add_addr_accepted: int

    def __str__(self) -> str:
        return f"ip mptcp limits set subflows {self.subflows} add_addr_accepted {self.add_addr_accepted}"

    def key(self) -> tuple[str, ...]:
        """Identify what this request overwrites."""
        return ()

    def encode(self, space: Space) -> Message:
        """Encode."""
        limits = u32(uapi.MPTCP_PM_ATTR_RCV_ADD_ADDRS, self.add_addr_accepted)
        limits += u32(uapi.MPTCP_PM_ATTR_SUBFLOWS, self.subflows)
        return Message(0, 0, command(uapi.MPTCP_PM_CMD_SET_LIMITS, limits), FAMILY)


@decoder
def parse_limits(entry: bytes) -> LimitsSet:
    """Decode the answer to MPTCP_PM_CMD_GET_LIMITS."""
    fields = attributes(entry, uapi.GENLMSGHDR.size)
    kinds = (uapi.MPTCP_PM_ATTR_SUBFLOWS, uapi.MPTCP_PM_ATTR_RCV_ADD_ADDRS)
    return LimitsSet(*(struct.unpack("=I", fields[kind])[0] for kind in kinds))


@decoder
def parse_endpoint(entry: bytes) -> tuple[str, int, int]:
    """Decode one message of a dump of MPTCP_PM_CMD_GET_ADDR: address, id and flags of an endpoint."""
    fields = attributes(attributes(entry, uapi.GENLMSGHDR.size)[uapi.MPTCP_PM_ATTR_ADDR])
    (flags,) = struct.unpack("=I", fields[uapi.MPTCP_PM_ADDR_ATTR_FLAGS])
    address = fields.get(uapi.MPTCP_PM_ADDR_ATTR_ADDR4) or fields[uapi.MPTCP_PM_ADDR_ATTR_ADDR6]
    return str(ip_address(address)), fields[uapi.MPTCP_PM_ADDR_ATTR_ID][0], flags & ~FLAGS["implicit"]


class PathManagerHas(Probe, frozen=True):
    """The kernel reports exactly these limits, where any are stated, and these endpoints."""

    limits: LimitsSet | None
    endpoints: tuple[EndpointAdd, ...]

    def __str__(self) -> str:
        ids = " ".join(str(e.id) for e in self.endpoints) or "none"
        of = self.limits
        most = f"subflows {of.subflows} accepted {of.add_addr_accepted} " if of is not None else ""
        return f"mptcp {most}endpoints {ids}"
