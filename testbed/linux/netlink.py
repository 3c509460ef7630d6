"""Netlink sockets of namespaces: send batches of requests, receive errors and dumps."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fcntl import ioctl

from msgspec import Struct, field

from testbed.drivers import nl80211
from testbed.errors import LabError
from testbed.linux import calls as linux
from testbed.linux import uapi, wire
from testbed.linux.wire import Message
from testbed.steps import LAB

# include/uapi/linux/sockios.h: the flags of an interface, and the network namespace of a socket.
_SIOCGIFFLAGS, _SIOCGSKNS = 0x8913, 0x894C
_IFREQ = struct.Struct("=16sH22x")
_SPARE = 256  # descriptors kept free for the rest of a lab


class Sockets(Struct):
    """The open rtnetlink sockets of a lab's namespaces, as many as there are descriptors to spare."""

    opened: dict[str, socket.socket] = field(default_factory=dict)  # in the order in which they were opened

    def add(self, name: str, sock: socket.socket, nodes: int) -> socket.socket:
        """Keep the socket of one of `nodes` nodes; close the oldest ones if there is no descriptor for it."""
        while len(self.opened) >= max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - nodes - _SPARE):
            self.opened.pop(next(iter(self.opened))).close()
        self.opened[name] = sock
        return sock


class Namespace(Struct):
    """A node's network namespace, kept alive by `fd`."""

    name: str
    fd: int
    sockets: Sockets
    peers: dict[str, Namespace]
    unused: Iterator[int]  # interface indexes, one sequence for a whole lab
    known: dict[str, int] = field(default_factory=lambda: {"lo": 1})
    stale: bool = False  # the kernel may have interfaces whose indexes it chose itself: look before choosing one
    genl: socket.socket | None = None
    mounts: int = -1  # a mount namespace with this node's /sys, made when its first process starts
    families: dict[str, int] = field(default_factory=dict)  # message types of generic netlink families

    @property
    def route(self) -> socket.socket:
        """Return an rtnetlink socket of this namespace, which works from any namespace."""
        if (found := self.sockets.opened.get(self.name)) is None:
            found = self.sockets.add(self.name, self._connect(wire.NETLINK_ROUTE), len(self.peers))
        return found

    def index(self, ifname: str) -> int:
        """Return an interface's index; ask the kernel only if `claim` did not choose it."""
        if (found := self.known.get(ifname)) is None:
            self.look()
            found = self.known.get(ifname)
        if found is None:
            raise LabError(f"{self.name}: there is no interface {ifname}; `ip link` in the node lists what is there")
        return found

    def claim(self, ifname: str, node: str | None = None) -> int:
        """Choose the index of an interface that is about to be made, so that it need not be looked up later.

        Indexes are unique in a lab. If both ends of a veth pair had the same index, the kernel would take the pair for
        one device and report its carrier up to a second late (net/core/link_watch.c).
        """
        if node is not None:
            return self.peers[node].claim(ifname)
        if self.stale:
            self.look()
        taken = set(self.known.values()) if self.stale else frozenset()
        index = self.known[ifname] = next(n for n in self.unused if n not in taken)
        return index

    def namespace(self, node: str) -> int:
        """Return the descriptor of another node's namespace."""
        return self.peers[node].fd

    def generic(self) -> socket.socket:
        """Return a generic netlink socket of this namespace, made on first use."""
        if self.genl is None:
            self.genl = self._connect(wire.NETLINK_GENERIC)
        return self.genl

    def _connect(self, protocol: int) -> socket.socket:
        back = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            with inside(self.fd, back):
                return connect(protocol)
        finally:
            os.close(back)

    def family(self, name: str) -> int:
        """Return the message type of a generic netlink family; raise LabError if the kernel does not have it."""
        if not self.families.get(name):
            self.families[name] = family(self.generic(), name)
        if not self.families[name]:
            raise LabError(f"{self.name}: this kernel has no generic netlink family {name}")
        return self.families[name]

    def radio(self, name: str) -> str:
        """Return a radio's name in the kernel, where names are unique (net/wireless/core.c): it includes the lab."""
        return f"{name}.{os.fstat(self.peers[LAB].fd).st_ino}"

    def wiphy(self, radio: str) -> int:
        """Return the number of a radio of this namespace (nl80211 calls a radio a wiphy)."""
        name = self.radio(radio)
        for entry in dump(self.generic(), self.family(nl80211.FAMILY), nl80211.GET_WIPHYS):
            if (found := nl80211.parse_wiphy(entry)).name == name:
                return found.index
        raise LabError(f"{self.name}: there is no radio {name}; `iw phy` lists what is there")

    def look(self) -> None:
        """Read all interface indexes from the kernel."""
        self.known = dict(links(self.route))
        self.stale = True


class Refusal(Struct, frozen=True):
    """The kernel's refusal of message number `at` of a batch."""

    at: int
    errno: int
    text: str

    def __str__(self) -> str:
        said = f": {self.text}" if self.text else ""
        return f"{os.strerror(self.errno)} (errno {self.errno}){said}"


def create(name: str, sockets: Sockets, peers: dict[str, Namespace], unused: Iterator[int]) -> Namespace:
    """Make an empty namespace and leave this process in it; the caller returns home after the last one."""
    linux.unshare(linux.CLONE_NEWNET)
    route = sockets.add(name, connect(wire.NETLINK_ROUTE), len(peers) + 1)
    return Namespace(name, ioctl(route, _SIOCGSKNS), sockets, peers, unused)


@contextmanager
def inside(fd: int, home: int) -> Iterator[None]:
    """Run a block in the network namespace `fd`; this process must have a single thread."""
    linux.setns(fd, linux.CLONE_NEWNET)
    try:
        yield
    finally:
        linux.setns(home, linux.CLONE_NEWNET)


def connect(protocol: int) -> socket.socket:
    """Open a netlink socket in the namespace that this process is in."""
    found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    found.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_CAP_ACK, 1)
    found.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_EXT_ACK, 1)
    return found


def transact(sock: socket.socket, batch: Sequence[Message], kind: int = 0) -> list[Refusal]:
    """Send a batch in one system call; return the refusals. The kernel performs all other messages of the batch.

    Only the last message asks for an acknowledgement, since errors of the others are reported anyway.
    `kind` is the message type of a generic netlink family; without it, each message has its own.
    """
    last = len(batch) - 1
    parts = []
    for seq, m in enumerate(batch):
        flags = wire.NLM_F_REQUEST | m.flags | (wire.NLM_F_ACK if seq == last else 0)
        # Lengths need no padding: attributes and headers are multiples of four bytes.
        parts += [wire.header(len(m.body), kind or m.kind, flags, seq), m.body]
    sock.send(b"".join(parts))
    refused: list[Refusal] = []
    while True:
        for got, _, seq, body in wire.messages(sock.recv(65536)):
            if got != uapi.NLMSG_ERROR:
                continue
            error = parse_error(body)
            # Positive numbers are not errors: hwsim answers NEW_RADIO with the radio's number (mac80211_hwsim.c).
            if error < 0:
                why = (
                    wire.attributes(body, uapi.NLMSGERR.size)
                    .get(uapi.NLMSGERR_ATTR_MSG, b"")
                    .rstrip(b"\0")
                    .decode(errors="replace")
                )
                refused.append(Refusal(seq, -error, why))
            if seq == last:
                return refused


@wire.decoder
def parse_error(body: bytes) -> int:
    """Return the error number of an NLMSG_ERROR; 0 means acknowledged."""
    return int(struct.unpack_from("=i", body)[0])


def dump(sock: socket.socket, kind: int, body: bytes) -> list[bytes]:
    """Dump a table; return the bodies of its entries. Raise LabError if the kernel refuses."""
    sock.send(wire.header(len(body), kind, wire.NLM_F_REQUEST | wire.NLM_F_DUMP, 1) + body)
    found: list[bytes] = []
    while True:
        # The kernel sends at most 32 KiB at once (net/netlink/af_netlink.c). A larger buffer would be mapped for each
        # call, which costs 0.1 ms a node.
        for got, _, _, entry in wire.messages(sock.recv(1 << 16)):
            if got == uapi.NLMSG_DONE:
                return found
            if got == uapi.NLMSG_ERROR:
                raise LabError(f"netlink dump {kind}: {os.strerror(-parse_error(entry))}")
            found.append(entry)


# A request for the interfaces without their statistics
_LINKS = bytes(uapi.IFINFOMSG.size) + wire.u32(uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_SKIP_STATS)


def links(sock: socket.socket) -> Iterator[tuple[str, int]]:
    """Yield the name and index of every interface of the socket's namespace."""
    yield from map(parse_link, dump(sock, uapi.RTM_GETLINK, _LINKS))


@wire.decoder
def parse_link(entry: bytes) -> tuple[str, int]:
    """Return the name and index of an interface."""
    _, _, index, _, _ = uapi.IFINFOMSG.unpack_from(entry)
    return wire.attributes(entry, uapi.IFINFOMSG.size)[uapi.IFLA_IFNAME].rstrip(b"\0").decode(), index


def link_entries(sock: socket.socket) -> list[bytes]:
    """Return the kernel's description of every interface, undecoded."""
    return dump(sock, uapi.RTM_GETLINK, _LINKS)


def running(sock: socket.socket, ifname: str) -> bool:
    """Return whether an interface of the socket's namespace exists and is operational (IFF_RUNNING, RFC 2863)."""
    return bool(flags(sock, ifname) & uapi.IFF_RUNNING)


def flags(sock: socket.socket, ifname: str) -> int:
    """Return the flags of an interface of the socket's namespace, 0 if it does not exist."""
    # net/socket.c takes this ioctl from sockets of any family; a dump of the links takes twenty times as long.
    try:
        found = ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(ifname.encode(), 0))
    except OSError as e:
        if e.errno != errno.ENODEV:
            raise
        return 0
    return int(_IFREQ.unpack(found)[1])


def family(sock: socket.socket, name: str) -> int:
    """Return the message type of a generic netlink family, 0 if this kernel does not have it."""
    return parse_family(controller(sock, name))


def controller(sock: socket.socket, name: str) -> bytes:
    """Ask the controller about a generic netlink family; return its answer (one or more messages)."""
    body = uapi.GENLMSGHDR.pack(uapi.CTRL_CMD_GETFAMILY, 1, 0) + wire.text(uapi.CTRL_ATTR_FAMILY_NAME, name)
    sock.send(wire.header(len(body), uapi.GENL_ID_CTRL, wire.NLM_F_REQUEST, 1) + body)
    return sock.recv(65536)


@wire.decoder
def parse_family(data: bytes) -> int:
    """Return the message type in an answer of the controller, 0 if that is a refusal."""
    for got, _, _, entry in wire.messages(data):
        if got == uapi.GENL_ID_CTRL:
            fields = wire.attributes(entry, uapi.GENLMSGHDR.size)
            return int(struct.unpack("=H", fields[uapi.CTRL_ATTR_FAMILY_ID])[0])
    return 0
