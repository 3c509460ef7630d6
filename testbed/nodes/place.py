"""Where a role is: its node and the node's interfaces, as planned. What `Role.steps` may know of the world."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_interface
from typing import Literal, Protocol

from msgspec import Struct

from testbed.features import Feature
from testbed.steps import Step

Kind = Literal["veth", "wlan", "bridge", "amt"]


class Interface(Struct, frozen=True):
    """One end of a link, or what a role brings: addresses are `address/length`, without link-local ones.

    `at` is where the file says it: an end of a link, or a role of a node.
    """

    node: str
    name: str
    mac: str
    mtu: int
    at: tuple[str | int, ...]
    segment: int
    addresses: tuple[str, ...]
    port: bool = False
    kind: Kind = "veth"

    def hosts(self) -> tuple[str, ...]:
        """Return the addresses without their prefix length."""
        return tuple(a.partition("/")[0] for a in self.addresses)

    def host(self, version: int) -> str:
        """Return the first address of a family (4 or 6), "" when there is none."""
        return next((h for h in self.hosts() if (":" in h) == (version == 6)), "")

    def network(self, version: int) -> str:
        """Return the network of the first address of a family, "" when there is none."""
        found = next((a for a in self.addresses if (":" in a) == (version == 6)), "")
        return str(ip_interface(found).network) if found else ""


class Bss(Struct, frozen=True):
    """What an access point offers: its links (link_id, MHz of the centre), addresses of these, and how to join.

    `mlo`: an AP MLD (IEEE 802.11be), whose MLD address is that of the interface and of no link. `moves` are the
    frequencies (link_id, MHz) that events move links to.
    """

    node: str
    ifname: str
    ssid: str
    country: str
    mlo: bool
    freqs: tuple[tuple[int, int], ...]
    bssids: tuple[str, ...]
    akm: str
    pairwise: str
    password: str
    pmf: bool
    beacon_protection: bool
    moves: tuple[tuple[int, int], ...] = ()


class Tunnel(Struct, frozen=True):
    """A node's end of AMT tunnels: its pseudo-interface `name`, and the interface and address that carry them.

    `discovery` is the relay's address, "" where this is the relay.
    """

    node: str
    name: str
    dev: str
    local: str
    discovery: str = ""


class Place(Struct, frozen=True):
    """A node's name, its interfaces in the order of the file, the families of the topology (4, 6), every BSS.

    `bridge` is the name of the node's bridge, "" when it has none; `tunnels` are the node's ends of AMT tunnels.
    """

    node: str
    interfaces: tuple[Interface, ...]
    families: tuple[int, ...]
    air: tuple[Bss, ...] = ()
    bridge: str = ""
    tunnels: tuple[Tunnel, ...] = ()

    def tunnel(self, name: str) -> Tunnel | None:
        """Return the node's end of AMT tunnels with that pseudo-interface."""
        return next((t for t in self.tunnels if t.name == name), None)

    def interface(self, name: str) -> Interface | None:
        """Return an interface by name."""
        return next((i for i in self.interfaces if i.name == name), None)

    def lacks(self, name: str) -> str:
        """Say that there is no such interface, and which there are."""
        names = ", ".join(i.name for i in self.interfaces) or "none: no link ends there"
        return f"{self.node} has no interface {name!r} (it has {names})"


def misnamed(name: str) -> str:
    """Say what is wrong with the name of an interface (net/core/dev.c: dev_valid_name), "" when nothing is."""
    if len(name.encode()) > 15:
        return f"the interface name {name!r} has {len(name.encode())} bytes, and Linux takes at most 15"
    if name in ("lo", "all", "default"):
        return f"{name!r} is no name for an interface: the kernel uses it itself"
    if name in ("", ".", "..") or re.search(r"[/:\s%]", name) or not name.isprintable():
        return f"{name!r} is no name of an interface: 1 to 15 characters without spaces, / : and %"
    if "#" in name:
        return f"{name!r} can't be the name of an interface: in the lab's /etc/hosts a comment would begin there"
    return ""


def named(name: str, here: Place, cure: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what is wrong with the name of an interface that a role brings; `cure` ends the sentence of a clash."""
    if problem := misnamed(name):
        yield ("name",), problem
    if sum(i.name == name for i in here.interfaces) > 1:
        yield ("name",), f"{name} is an interface of {here.node} already: {cure}"


class Role(Protocol):
    """What a node does: frozen data, and a pure function from itself and its place to steps."""

    def requires(self) -> tuple[Feature, ...]:
        """Return what the kernel and the machine must offer."""

    def faults(self, here: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (path below this role, sentence) for what can't work here."""

    def steps(self, here: Place) -> Iterator[Step]:
        """Yield what makes a configured node play this role."""
