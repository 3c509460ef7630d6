"""The in-kernel MPTCP path manager: endpoints and limits (RFC 8684, ip-mptcp(8), include/uapi/linux/mptcp_pm.h)."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

from msgspec import Struct

from testbed.linux.wire import Here, Message, attr, nest, u8, u16, u32

FAMILY = "mptcp_pm"
ADD_ADDR, GET_ADDR, SET_LIMITS, GET_LIMITS, SET_FLAGS = 1, 3, 5, 6, 7
FLAGS = {"signal": 1, "subflow": 2, "backup": 4, "fullmesh": 8, "implicit": 16, "laminar": 32}
LIMIT = 8  # net/mptcp/pm_kernel.c: MPTCP_PM_ADDR_MAX before Linux 7.2
_VERSION = 1


def command(cmd: int, *attributes: bytes) -> bytes:
    """Encode a body: struct genlmsghdr and attributes."""
    return struct.pack("=BBH", cmd, _VERSION, 0) + b"".join(attributes)


class EndpointAdd(Struct, frozen=True, tag=True):
    """An address that the path manager may use (subflow) or announce (signal); its id is fixed by the plan."""

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

    def encode(self, here: Here) -> Message:
        """Encode; the port is in host order here, unlike in events."""
        address = ip_address(self.address)
        v6 = address.version == 6
        body = u16(1, socket.AF_INET6 if v6 else socket.AF_INET) + u8(2, self.id)
        body += attr(4 if v6 else 3, address.packed) + u32(6, sum(FLAGS[f] for f in self.flags))
        if self.port:
            body += u16(5, self.port)
        if self.dev:
            body += u32(7, here.index(self.dev))
        return Message(0, 0, command(ADD_ADDR, nest(1, body)), FAMILY)


class EndpointFlags(Struct, frozen=True, tag=True):
    """An existing endpoint gets other flags; the kernel takes backup and fullmesh here (MPTCP_PM_CMD_SET_FLAGS)."""

    endpoint: EndpointAdd

    def __str__(self) -> str:
        flags = [f if f in self.endpoint.flags else f"no{f}" for f in ("backup", "fullmesh")]
        return f"ip mptcp endpoint change id {self.endpoint.id} {' '.join(flags)}"

    def encode(self, here: Here) -> Message:
        """Encode: the same attributes under another number."""
        added = self.endpoint.encode(here)
        return Message(added.kind, 0, bytes((SET_FLAGS,)) + added.body[1:], FAMILY)


class LimitsSet(Struct, frozen=True, tag=True):
    """How many subflows a connection may have beyond the first, and how many ADD_ADDR it accepts."""

    subflows: int
    add_addr_accepted: int

    def __str__(self) -> str:
        return f"ip mptcp limits set subflows {self.subflows} add_addr_accepted {self.add_addr_accepted}"

    def key(self) -> tuple[str, ...]:
        """Name what this overwrites."""
        return ()

    def encode(self, here: Here) -> Message:
        """Encode."""
        limits = u32(2, self.add_addr_accepted) + u32(3, self.subflows)
        return Message(0, 0, command(SET_LIMITS, limits), FAMILY)


class PathManagerHas(Struct, frozen=True, tag=True):
    """The kernel reports exactly these limits and endpoints: set-up is verified, never assumed."""

    limits: LimitsSet
    endpoints: tuple[EndpointAdd, ...]

    def __str__(self) -> str:
        ids = " ".join(str(e.id) for e in self.endpoints) or "none"
        return f"mptcp subflows {self.limits.subflows} accepted {self.limits.add_addr_accepted} endpoints {ids}"
