"""Namespaces, veth pairs, bridges and addresses as requests (rtnetlink(7), if_link.h)."""

from __future__ import annotations

import socket
import struct

from msgspec import Struct

from testbed.linux import wire
from testbed.linux.wire import Here, Message, attr, nest, text, u8, u32

RTM_NEWLINK, RTM_NEWADDR, RTM_DELADDR = 16, 20, 21
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_AF_SPEC, IFLA_NET_NS_FD, IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 26, 28, 31, 32
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_BR_FORWARD_DELAY, IFLA_BR_STP_STATE, IFLA_BR_MCAST_SNOOPING = 1, 5, 23
IFF_UP, IFF_RUNNING, IFA_F_NODAD = 0x1, 0x40, 0x2
BRIDGE_PORTS = 1023  # net/bridge/br_private.h: BR_PORT_BITS 10, and port 0 is not used
MTU = 1500  # of every veth unless set
CREATE = wire.NLM_F_CREATE | wire.NLM_F_EXCL

_IFINFO = struct.Struct("=BxHiII")
# One queue an end: without it veth waits for two RCU grace periods a pair on any machine with two CPUs.
_ONE_QUEUE = u32(IFLA_NUM_TX_QUEUES, 1) + u32(IFLA_NUM_RX_QUEUES, 1)
_VETH = text(IFLA_INFO_KIND, "veth")
# IFLA_INET6_ADDR_GEN_MODE = IN6_ADDR_GEN_MODE_NONE: no link-local address, hence no DAD, RS and MLD frames.
_NO_ADDRESS = nest(IFLA_AF_SPEC, nest(socket.AF_INET6, u8(8, 1)))


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, change)


def _mac(address: str) -> bytes:
    return attr(IFLA_ADDRESS, bytes.fromhex(address.replace(":", "")))


class NamespaceAdd(Struct, frozen=True, tag=True):
    """A node: an empty network namespace with `lo` up."""

    name: str

    def __str__(self) -> str:
        return f"ip netns add {self.name}"


class VethAdd(Struct, frozen=True, tag=True):
    """A veth pair, both ends in their final namespace under their final name; this end may be a bridge port."""

    name: str
    mac: str
    peer_node: str
    peer_name: str
    peer_mac: str
    master: str = ""

    def __str__(self) -> str:
        port = f" master {self.master} up" if self.master else ""
        return (
            f"ip link add {self.name} address {self.mac}{port} numtxqueues 1 numrxqueues 1 type veth"
            f" peer {self.peer_name} netns {self.peer_node} address {self.peer_mac}"
        )

    def encode(self, here: Here) -> Message:
        """Encode; the peer can't be made IFF_UP (veth_open says ENOTCONN before the pair is linked)."""
        index, peer = here.claim(self.name), here.claim(self.peer_name, self.peer_node)
        pair = nest(
            VETH_INFO_PEER,
            _ifinfo(peer),
            text(IFLA_IFNAME, self.peer_name),
            u32(IFLA_NET_NS_FD, here.namespace(self.peer_node)),
            _mac(self.peer_mac),
            _ONE_QUEUE,
        )
        body = text(IFLA_IFNAME, self.name) + _mac(self.mac) + _ONE_QUEUE
        flags = 0
        if self.master:
            body += u32(IFLA_MASTER, here.index(self.master))
            flags = IFF_UP
        info = nest(IFLA_LINKINFO, _VETH, nest(IFLA_INFO_DATA, pair))
        return Message(RTM_NEWLINK, CREATE, _ifinfo(index, flags, flags) + body + info)


class BridgeAdd(Struct, frozen=True, tag=True):
    """An IEEE 802.1D bridge, down: ports join faster while it is."""

    name: str
    mac: str
    mcast_snooping: bool = False
    stp: bool = False

    def __str__(self) -> str:
        words = f"stp_state {int(self.stp)} mcast_snooping {int(self.mcast_snooping)}"
        return f"ip link add {self.name} address {self.mac} type bridge {words}"

    def encode(self, here: Here) -> Message:
        """Encode."""
        options = u32(IFLA_BR_STP_STATE, self.stp) + u8(IFLA_BR_MCAST_SNOOPING, self.mcast_snooping)
        info = nest(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"), nest(IFLA_INFO_DATA, options))
        body = text(IFLA_IFNAME, self.name) + _mac(self.mac) + info
        return Message(RTM_NEWLINK, CREATE, _ifinfo(here.claim(self.name)) + body)


class PortAdd(Struct, frozen=True, tag=True):
    """An existing interface becomes a port of a bridge, and comes up."""

    name: str
    master: str

    def __str__(self) -> str:
        return f"ip link set {self.name} master {self.master} up"

    def encode(self, here: Here) -> Message:
        """Encode."""
        head = _ifinfo(here.index(self.name), IFF_UP, IFF_UP)
        return Message(RTM_NEWLINK, 0, head + u32(IFLA_MASTER, here.index(self.master)))


class LinkSet(Struct, frozen=True, tag=True):
    """Change an existing link: its state or its MTU."""

    name: str
    up: bool | None = None
    mtu: int | None = None

    def __str__(self) -> str:
        words = [] if self.mtu is None else [f"mtu {self.mtu}"]
        words += [] if self.up is None else ["up" if self.up else "down"]
        return f"ip link set {self.name} {' '.join(words)}"

    def key(self) -> tuple[str, ...]:
        """Name what this overwrites."""
        return (self.name, "mtu" if self.up is None else "state")

    def encode(self, here: Here) -> Message:
        """Encode."""
        change = 0 if self.up is None else IFF_UP
        body = b"" if self.mtu is None else u32(IFLA_MTU, self.mtu)
        return Message(RTM_NEWLINK, 0, _ifinfo(here.index(self.name), IFF_UP if self.up else 0, change) + body)


class AutoAddressOff(Struct, frozen=True, tag=True):
    """No automatic IPv6 address on a link; must come before `up`, and is ignored in a creating message."""

    name: str

    def __str__(self) -> str:
        return f"ip link set {self.name} addrgenmode none"

    def encode(self, here: Here) -> Message:
        """Encode."""
        return Message(RTM_NEWLINK, 0, _ifinfo(here.index(self.name)) + _NO_ADDRESS)


class AddressAdd(Struct, frozen=True, tag=True):
    """An address on a link; IPv6 without duplicate address detection, for addresses here are planned."""

    address: str
    dev: str

    def __str__(self) -> str:
        nodad = " nodad" if ":" in self.address else ""
        return f"ip addr add {self.address} dev {self.dev}{nodad}"

    def encode(self, here: Here) -> Message:
        """Encode."""
        head, body = _address(self.address)
        return Message(RTM_NEWADDR, CREATE, head + struct.pack("=I", here.index(self.dev)) + body)


class LinksUp(Struct, frozen=True, tag=True):
    """Every named link is operationally up (RFC 2863, IFF_RUNNING), so that the first packet is not lost."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"operstate up: {' '.join(self.names)}"


class Silence(Struct, frozen=True, tag=True):
    """Nothing new has come to the ports of a bridge, which is down still: its nodes have said what they say first."""

    bridge: str

    def __str__(self) -> str:
        return f"silence at {self.bridge}"


def _address(address: str) -> tuple[bytes, bytes]:
    """Encode the family, length, flags and scope, and IFA_LOCAL and IFA_ADDRESS."""
    host, _, length = address.partition("/")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    raw = socket.inet_pton(family, host)  # ipaddress takes thirty times as long
    flags = IFA_F_NODAD if family == socket.AF_INET6 else 0
    return bytes((family, int(length), flags, 0)), attr(2, raw) + attr(1, raw)
