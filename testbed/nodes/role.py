"""Role: the interface of all roles, with defaults for everything that a role need not define.

A role is one file, with a class that derives from `Role` and overrides what concerns it, and a field of `Node`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

from msgspec import Struct

from testbed.drivers.link import MTU
from testbed.drivers.smcroute import Entry
from testbed.features import Feature
from testbed.nodes.one_path import Flow
from testbed.nodes.place import Bss, Kind, Place
from testbed.spec import Spec
from testbed.steps import Request, Step

UP = ".."  # as the first of a path: it is below the node and not below the role
RoleFault = tuple[tuple[str | int, ...], str]  # a path below the role in the file, and a sentence


class Brought(Struct, frozen=True):
    """An interface that a role adds to its node, and the addresses that the file states for it (None: planned).

    `medium` names a medium that several interfaces share, such as an SSID, and the one that `makes` it decides its MTU;
    without a name it has a medium of its own. One that is not `placed` has no addresses and no place in the network.
    """

    name: str
    kind: Kind
    stated: tuple[str, ...] | None = None
    mtu: int = MTU
    medium: str = ""
    makes: bool = False
    placed: bool = True


class Switch(Struct, frozen=True):
    """An Ethernet switch in a node: its own interface, and the interfaces that are its ports (None: all)."""

    name: str
    ports: tuple[str, ...] | None
    mcast_snooping: bool
    stp: bool
    forward_delay: float | None = None  # s

    def takes(self, ifname: str) -> bool:
        """Say whether an interface of the node is a port."""
        return ifname != self.name and (self.ports is None or ifname in self.ports)


class Radio(Struct, frozen=True):
    """A radio's interface: its mode (nl80211), whether it is an MLD, and the (link_id, MHz) of its links."""

    ifname: str
    mode: Literal["managed", "AP"]
    mlo: bool
    links: tuple[tuple[int, int], ...]


class Counter(Struct, frozen=True):
    """A number that the kernel keeps for a network namespace, in a file below /proc/net or /proc/sys/net.

    `field` is GROUP.NAME where the file has groups (/proc/net/netstat, snmp, sockstat), NAME where each line is a name
    and a number (/proc/net/snmp6), and "" where the file is one number.
    """

    file: str
    field: str = ""


class Role(Spec):
    """What a node does. Every method is pure: it asks nothing of the machine."""

    called: ClassVar[str] = ""  # in messages: "phone is not an MPTCP host"
    after: ClassVar[tuple[str, ...]] = ()  # fields of Node: roles that start first, wherever they are in the lab
    figures: ClassVar[tuple[str, ...]] = ()  # owners in metrics/table.py that it has beside the one of its field's name

    def requires(self) -> tuple[Feature, ...]:
        """Return the features that the kernel and the machine must have."""
        return ()

    def needs(self, place: Place) -> tuple[Feature, ...]:
        """Return the features that it needs for its place in the network."""
        return ()

    def interfaces(self, forwards: bool) -> tuple[Brought, ...]:
        """Return the interfaces that the role adds; `forwards` says whether its node is a router."""
        return ()

    def faults(self, place: Place) -> Iterator[RoleFault]:
        """Yield (path below this role, sentence) for each fault."""
        yield from ()

    def first(self, place: Place) -> Iterator[Step]:
        """Yield the first steps in the namespace, such as kernel parameters that interfaces inherit when made."""
        yield from ()

    def steps(self, place: Place) -> Iterator[Step]:
        """Yield the steps that make a configured node play this role."""
        yield from ()

    def during(self, place: Place) -> Iterator[Step]:
        """Yield the steps that it performs at times of a run."""
        yield from ()

    def times(self) -> Iterator[tuple[tuple[str | int, ...], float]]:
        """Yield (path below this role, time) of each time of a run that it names."""
        yield from ()

    def counts(self) -> dict[str, str]:
        """Return figures (NODE.ROLE.NAME) that should not stay 0 in a run, by name, and what each is of."""
        return {}

    def restart(self, place: Place) -> Iterator[Request]:
        """Yield the requests that make it drop its state and start again; `restart` events may name roles with some."""
        yield from ()

    def counters(self, place: Place) -> dict[str, Counter]:
        """Return the counters to sample as NODE.ROLE.NAME, by their names in metrics/table.py."""
        return {}

    def samples(self) -> tuple[str, ...]:
        """Return the readers of the sampler that the role needs."""
        return ()

    def excused(self, restarted: bool) -> tuple[str, ...]:
        """Return counters (INTERFACE.NAME) whose drops are harmless; `restarted`: in a run with such an event."""
        return ()

    def loose(self) -> bool:
        """Return whether packets may arrive by another way than they would leave, so that rp_filter must be off."""
        return False

    def forwards(self) -> bool:
        """Return whether the node forwards IP packets."""
        return False

    def routes_multicast(self) -> bool:
        """Return whether the node forwards multicast by the planned trees."""
        return False

    def forward(self, place: Place, entries: tuple[Entry, ...]) -> Iterator[Step]:
        """Yield the steps that make the node forward multicast by these routes."""
        yield from ()

    def joins(self, place: Place) -> frozenset[str] | None:
        """Return the addresses that open connections if each address needs its own routes, else None."""
        return None

    def warned(self, flow: Flow, other: Role) -> Iterator[tuple[str, str, str]]:
        """Yield (name of a warning, sentence, hint) of a connection to a node with the same role, which is `other`."""
        yield from ()

    def warns(self, place: Place) -> Iterator[tuple[str, tuple[str | int, ...], str, str]]:
        """Yield (name of a warning, path below this role, sentence, hint) of what will work and not as it reads."""
        yield from ()

    def switch(self) -> Switch | None:
        """Return the Ethernet switch that the role adds."""
        return None

    def radio(self, place: Place) -> Radio | None:
        """Return the radio that the role adds."""
        return None

    def offers(self, place: Place, mac: Callable[[str], str]) -> Bss | None:
        """Return what the role offers to stations; `mac` plans an address for a name that is unique in the lab."""
        return None

    def rejoin(self, place: Place) -> tuple[Request, ...]:
        """Return the commands that make a station leave and join again."""
        return ()
