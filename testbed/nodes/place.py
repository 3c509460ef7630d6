"""Where a role is: its node and the node's interfaces, as planned. What `Role.steps` may know of the world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Protocol

from testbed.features import Feature
from testbed.steps import Step


@dataclass(frozen=True, slots=True)
class Interface:
    """One end of a link: addresses are `address/length`, of both families, without link-local ones."""

    node: str
    name: str
    mac: str
    mtu: int
    link: int
    segment: int
    addresses: tuple[str, ...]
    port: bool = False

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


@dataclass(frozen=True, slots=True)
class Place:
    """A node's name, its interfaces in the order of the file, and the families of the topology (4, 6)."""

    node: str
    interfaces: tuple[Interface, ...]
    families: tuple[int, ...]

    def interface(self, name: str) -> Interface | None:
        """Return an interface by name."""
        return next((i for i in self.interfaces if i.name == name), None)


class Role(Protocol):
    """What a node does: frozen data, and a pure function from itself and its place to steps."""

    def requires(self) -> tuple[Feature, ...]:
        """Return what the kernel and the machine must offer."""

    def faults(self, here: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (path below this role, sentence) for what can't work here."""

    def steps(self, here: Place) -> Iterator[Step]:
        """Yield what makes a configured node play this role."""
