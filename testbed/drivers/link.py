"""Namespaces, veth pairs, bridges and addresses as requests (rtnetlink(7), if_link.h)."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from testbed.linux import uapi, wire
from testbed.linux.wire import Message, Space, attr, nest, text, u8, u32
from testbed.steps import Probe, Request

BRIDGE_PORTS = 1023  # net/bridge/br_private.h: BR_PORT_BITS 10, and port 0 is not used
MTU = 1500  # a veth's default
FORWARD_DELAY = 15.0  # s, a bridge's default
_USER_HZ = 100  # net/bridge/br_netlink.c: clock_t_to_jiffies
CREATE = wire.NLM_F_CREATE | wire.NLM_F_EXCL

# One queue for each end: with more, veth waits for two RCU grace periods a pair on a machine with two CPUs.
_ONE_QUEUE = u32(uapi.IFLA_NUM_TX_QUEUES, 1) + u32(uapi.IFLA_NUM_RX_QUEUES, 1)
_VETH = text(uapi.IFLA_INFO_KIND, "veth")
# Without a link-local address the kernel sends no DAD, RS and MLD frames.
_NO_ADDRESS = nest(
    uapi.IFLA_AF_SPEC, nest(socket.AF_INET6, u8(uapi.IFLA_INET6_ADDR_GEN_MODE, uapi.IN6_ADDR_GEN_MODE_NONE))
)


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, index, flags, change)


def _mac(address: str) -> bytes:
    return attr(uapi.IFLA_ADDRESS, bytes.fromhex(address.replace(":", "")))


class NamespaceAdd(Request, frozen=True):
    """Make a node: an empty network namespace with `lo` up."""

    name: str

    def __str__(self) -> str:
        return f"ip netns add {self.name}"


class VethAdd(Request, frozen=True):
    """Make a veth pair, both ends in their final namespaces with their final names; this end may be a bridge port."""

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

    def encode(self, space: Space) -> Message:
        """Encode; the peer cannot be up from the start (veth_open fails with ENOTCONN until both ends exist)."""
        index, peer = space.claim(self.name), space.claim(self.peer_name, self.peer_node)
        pair = nest(
            uapi.VETH_INFO_PEER,
            _ifinfo(peer),
            text(uapi.IFLA_IFNAME, self.peer_name),
            u32(uapi.IFLA_NET_NS_FD, space.namespace(self.peer_node)),
            _mac(self.peer_mac),
            _ONE_QUEUE,
        )
        body = text(uapi.IFLA_IFNAME, self.name) + _mac(self.mac) + _ONE_QUEUE
        flags = 0
        if self.master:
            body += u32(uapi.IFLA_MASTER, space.index(self.master))
            flags = uapi.IFF_UP
        info = nest(uapi.IFLA_LINKINFO, _VETH, nest(uapi.IFLA_INFO_DATA, pair))
        return Message(uapi.RTM_NEWLINK, CREATE, _ifinfo(index, flags, flags) + body + info)


class BridgeAdd(Request, frozen=True):
    """Make an IEEE 802.1D bridge, down: ports join faster that way."""

    name: str
    mac: str
    mcast_snooping: bool = False
    stp: bool = False
    forward_delay: float | None = None  # s in each of the states listening and learning

    def __str__(self) -> str:
        words = f"stp_state {int(self.stp)} mcast_snooping {int(self.mcast_snooping)}"
        words += f" forward_delay {self._ticks()}" if self.forward_delay is not None else ""
        return f"ip link add {self.name} address {self.mac} type bridge {words}"

    def encode(self, space: Space) -> Message:
        """Encode."""
        options = u32(uapi.IFLA_BR_STP_STATE, self.stp) + u8(uapi.IFLA_BR_MCAST_SNOOPING, self.mcast_snooping)
        options += u32(uapi.IFLA_BR_FORWARD_DELAY, self._ticks()) if self.forward_delay is not None else b""
        info = nest(uapi.IFLA_LINKINFO, text(uapi.IFLA_INFO_KIND, "bridge"), nest(uapi.IFLA_INFO_DATA, options))
        body = text(uapi.IFLA_IFNAME, self.name) + _mac(self.mac) + info
        return Message(uapi.RTM_NEWLINK, CREATE, _ifinfo(space.claim(self.name)) + body)

    def _ticks(self) -> int:
        return round((self.forward_delay or 0) * _USER_HZ)


class PortAdd(Request, frozen=True):
    """Make an existing interface a port of a bridge, and bring it up."""

    name: str
    master: str

    def __str__(self) -> str:
        return f"ip link set {self.name} master {self.master} up"

    def encode(self, space: Space) -> Message:
        """Encode."""
        head = _ifinfo(space.index(self.name), uapi.IFF_UP, uapi.IFF_UP)
        return Message(uapi.RTM_NEWLINK, 0, head + u32(uapi.IFLA_MASTER, space.index(self.master)))


class LinkSet(Request, frozen=True):
    """Change an existing link: its state or its MTU."""

    name: str
    up: bool | None = None
    mtu: int | None = None

    def __str__(self) -> str:
        words = [] if self.mtu is None else [f"mtu {self.mtu}"]
        words += [] if self.up is None else ["up" if self.up else "down"]
        return f"ip link set {self.name} {' '.join(words)}"

    def key(self) -> tuple[str, ...]:
        """Identify what this request overwrites."""
        return (self.name, "mtu" if self.up is None else "state")

    def encode(self, space: Space) -> Message:
        """Encode."""
        change = 0 if self.up is None else uapi.IFF_UP
        body = b"" if self.mtu is None else u32(uapi.IFLA_MTU, self.mtu)
        return Message(
            uapi.RTM_NEWLINK, 0, _ifinfo(space.index(self.name), uapi.IFF_UP if self.up else 0, change) + body
        )


class AutoAddressOff(Request, frozen=True):
    """Turn a link's automatic IPv6 address off: before `up`, and not in the message that makes the link."""

    name: str

    def __str__(self) -> str:
        return f"ip link set {self.name} addrgenmode none"

    def encode(self, space: Space) -> Message:
        """Encode."""
        return Message(uapi.RTM_NEWLINK, 0, _ifinfo(space.index(self.name)) + _NO_ADDRESS)


class AddressAdd(Request, frozen=True):
    """Add an address to a link; IPv6 without duplicate address detection, since planned addresses are unique."""

    address: str
    dev: str

    def __str__(self) -> str:
        nodad = " nodad" if ":" in self.address else ""
        return f"ip addr add {self.address} dev {self.dev}{nodad}"

    def encode(self, space: Space) -> Message:
        """Encode."""
        host, _, length = self.address.partition("/")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        raw = socket.inet_pton(family, host)  # ipaddress takes thirty times as long
        flags = uapi.IFA_F_NODAD if family == socket.AF_INET6 else 0
        head = uapi.IFADDRMSG.pack(family, int(length), flags, 0, space.index(self.dev))
        return Message(uapi.RTM_NEWADDR, CREATE, head + attr(uapi.IFA_LOCAL, raw) + attr(uapi.IFA_ADDRESS, raw))


class LinksUp(Probe, frozen=True):
    """All of these links are operationally up (RFC 2863, IFF_RUNNING), so that no first packet is lost."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"operstate up: {' '.join(self.names)}"


class TreeStands(Probe, frozen=True):
    """The spanning tree is there: each port of a bridge forwards or blocks, and none listens or learns any more."""

    bridge: str

    def __str__(self) -> str:
        return f"spanning tree at {self.bridge}"

    def unmet(self, ports: Sequence[tuple[str, int]]) -> str:
        """Return which of the ports (name, state by if_bridge.h) are still about to forward."""
        names = {1: "listening", 2: "learning"}
        return " ".join(f"{name} is {names[state]}" for name, state in ports if state in names)


@wire.decoder
def parse_port(entry: bytes) -> tuple[str, int]:
    """Return the name and the state of a port of a bridge, of a dump for AF_BRIDGE; of other interfaces the state 0."""
    fields = wire.attributes(entry, uapi.IFINFOMSG.size)
    info = wire.attributes(fields[uapi.IFLA_PROTINFO]) if uapi.IFLA_PROTINFO in fields else {}
    state = info.get(uapi.IFLA_BRPORT_STATE, b"\0")[0]
    return fields[uapi.IFLA_IFNAME].rstrip(b"\0").decode(), state


class Silence(Probe, frozen=True):
    """The ports of a bridge that is still down receive nothing new: its nodes have sent their first packets."""

    bridge: str

    def __str__(self) -> str:
        return f"silence at {self.bridge}"
