"""A node's network namespace: its netlink sockets, and the indexes of its interfaces."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from fcntl import ioctl

from msgspec import Struct, field

from testbed.drivers import nl80211
from testbed.errors import LabError
from testbed.linux import calls as linux
from testbed.linux import netlink, wire
from testbed.steps import LAB

_SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h: the network namespace of a socket
_SPARE = 256  # descriptors kept free for the rest of a lab


class Sockets(Struct):
    """The open rtnetlink sockets of a lab's namespaces, as many as there are descriptors to spare."""

    opened: dict[str, socket.socket] = field(default_factory=dict)  # in the order in which they were opened

    def add(self, name: str, sock: socket.socket, nodes: int) -> socket.socket:
        """Keep a node's socket, of a lab with `nodes` nodes; close the oldest ones if descriptors run out."""
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
            with netlink.inside(self.fd, back):
                return netlink.connect(protocol)
        finally:
            os.close(back)

    def family(self, name: str) -> int:
        """Return the message type of a generic netlink family; raise LabError if the kernel does not have it."""
        if not self.families.get(name):
            self.families[name] = netlink.family(self.generic(), name)
        if not self.families[name]:
            raise LabError(f"{self.name}: this kernel has no generic netlink family {name}")
        return self.families[name]

    def radio(self, name: str) -> str:
        """Return a radio's name in the kernel, where names are unique (net/wireless/core.c): it includes the lab."""
        return f"{name}.{os.fstat(self.peers[LAB].fd).st_ino}"

    def wiphy(self, radio: str) -> int:
        """Return the number of a radio of this namespace (nl80211 calls a radio a wiphy)."""
        name = self.radio(radio)
        for entry in netlink.dump(self.generic(), self.family(nl80211.FAMILY), nl80211.GET_WIPHYS):
            if (found := nl80211.parse_wiphy(entry)).name == name:
                return found.index
        raise LabError(f"{self.name}: there is no radio {name}; `iw phy` lists what is there")

    def look(self) -> None:
        """Read all interface indexes from the kernel."""
        self.known = dict(netlink.links(self.route))
        self.stale = True


def create(name: str, sockets: Sockets, peers: dict[str, Namespace], unused: Iterator[int]) -> Namespace:
    """Make an empty namespace and leave this process in it; the caller returns home after the last one."""
    linux.unshare(linux.CLONE_NEWNET)
    route = sockets.add(name, netlink.connect(wire.NETLINK_ROUTE), len(peers) + 1)
    return Namespace(name, ioctl(route, _SIOCGSKNS), sockets, peers, unused)
