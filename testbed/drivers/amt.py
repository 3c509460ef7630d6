"""The kernel's AMT interfaces (RFC 7450): a request that makes one, and the decoder of its description.

Sources: include/uapi/linux/amt.h, drivers/net/amt.c. pyroute2 does not support this kind of link.
"""

from __future__ import annotations

import socket
import struct
from typing import Literal

from msgspec import Struct

from testbed.drivers.link import CREATE
from testbed.linux import uapi
from testbed.linux.wire import Message, Space, attr, attributes, decoder, nest, text, u32
from testbed.steps import Probe, Request

PORT = 2268  # IANA's, RFC 7450 section 7
HEADERS = 40  # what the driver subtracts from the stream interface's MTU: IPv4 20, UDP 8, AMT 12 (Membership Update)
LEAST_MTU = 68 + HEADERS  # of a stream interface (ETH_MIN_MTU)
GROUPS = 32  # of one tunnel (AMT_MAX_GROUP); the driver drops further ones silently
MOST_TUNNELS = 65535
Mode = Literal["gateway", "relay"]
_MODES: dict[Mode, int] = {"gateway": 0, "relay": 1}
# IFLA_AMT_* of amt.h
_MODE, _RELAY_PORT, _GATEWAY_PORT, _LINK, _LOCAL, _REMOTE, _DISCOVERY, _MAX_TUNNELS = range(1, 9)
_KIND = "amt"


class AmtAdd(Request, frozen=True):
    """Make a gateway's or a relay's pseudo-interface, down and in its final namespace: it cannot be moved.

    `dev` is the interface that carries the tunnels, `local` its address. Neither can be changed later.
    """

    name: str
    mac: str
    mode: Mode
    dev: str
    local: str
    relay_port: int
    gateway_port: int = 0
    discovery: str = ""
    max_tunnels: int = 0

    def __str__(self) -> str:
        own = (
            f"discovery {self.discovery} gateway_port {self.gateway_port} relay_port {self.relay_port}"
            if self.mode == "gateway"
            else f"relay_port {self.relay_port} max_tunnels {self.max_tunnels}"
        )
        head = f"ip link add {self.name} address {self.mac} type amt mode {self.mode}"
        return f"{head} local {self.local} {own} dev {self.dev}"

    def encode(self, space: Space) -> Message:
        """Encode; ports are in network order."""
        data = u32(_MODE, _MODES[self.mode]) + _port(_RELAY_PORT, self.relay_port)
        data += _port(_GATEWAY_PORT, self.gateway_port) if self.gateway_port else b""
        data += u32(_LINK, space.index(self.dev)) + _address(_LOCAL, self.local)
        data += _address(_DISCOVERY, self.discovery) if self.discovery else b""
        data += u32(_MAX_TUNNELS, self.max_tunnels) if self.max_tunnels else b""
        info = nest(uapi.IFLA_LINKINFO, text(uapi.IFLA_INFO_KIND, _KIND), nest(uapi.IFLA_INFO_DATA, data))
        head = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, space.claim(self.name), 0, 0)
        mac = attr(uapi.IFLA_ADDRESS, bytes.fromhex(self.mac.replace(":", "")))
        return Message(uapi.RTM_NEWLINK, CREATE, head + text(uapi.IFLA_IFNAME, self.name) + mac + info)


def _port(kind: int, number: int) -> bytes:
    return attr(kind, struct.pack(">H", number))


def _address(kind: int, text: str) -> bytes:
    """Encode an IPv4 address: of a longer one the driver would silently take the first four bytes."""
    return attr(kind, socket.inet_pton(socket.AF_INET, text))


class Amt(Struct, frozen=True):
    """The kernel's description of an AMT interface; `remote` is "" until a relay has answered."""

    name: str
    mode: Mode
    local: str
    remote: str
    discovery: str
    relay_port: int
    max_tunnels: int

    def __str__(self) -> str:
        if self.mode == "relay":
            return f"AMT relay {self.local} port {self.relay_port} max_tunnels {self.max_tunnels}"
        return f"AMT gateway {self.local} discovery {self.discovery} remote {self.remote or 'none yet'}"


@decoder
def parse_link(entry: bytes) -> Amt | None:
    """Decode one message of a dump of links; return None for other kinds of link."""
    link = attributes(entry, uapi.IFINFOMSG.size)
    info = attributes(link.get(uapi.IFLA_LINKINFO, b""))
    if info.get(uapi.IFLA_INFO_KIND, b"").rstrip(b"\0").decode() != _KIND:
        return None
    data = attributes(info[uapi.IFLA_INFO_DATA])
    (mode,), (most,) = struct.unpack("=I", data[_MODE]), struct.unpack("=I", data[_MAX_TUNNELS])
    return Amt(
        name=link[uapi.IFLA_IFNAME].rstrip(b"\0").decode(),
        mode="gateway" if mode == _MODES["gateway"] else "relay",
        local=_dotted(data.get(_LOCAL, b"")),
        remote=_dotted(data.get(_REMOTE, b"")),
        discovery=_dotted(data.get(_DISCOVERY, b"")),
        relay_port=int.from_bytes(data[_RELAY_PORT], "big"),
        max_tunnels=most,
    )


def _dotted(raw: bytes) -> str:
    return ".".join(map(str, raw))


class RelayFound(Probe, frozen=True):
    """A gateway has received a Relay Advertisement (RFC 7450, 5.1.2): the kernel then reports the relay's address.

    The driver reports nothing else; it sends a Relay Discovery every five seconds until then.
    """

    name: str
    remote: str

    def __str__(self) -> str:
        return f"{self.name} remote {self.remote}"

    def unmet(self, seen: Amt | None) -> str:
        """Return what is missing, "" if nothing is."""
        if seen is None:
            return f"there is no AMT interface {self.name}"
        if not seen.remote:
            return f"{self.name} has no remote: no Relay Advertisement has come from {seen.discovery}"
        return "" if seen.remote == self.remote else f"the remote of {self.name} is {seen.remote}, not {self.remote}"
