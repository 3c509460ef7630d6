"""What a workload may know: its name, addresses of nodes, a free port, and the folder of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from msgspec import Struct

from testbed.features import Feature
from testbed.metrics.measured import Measured
from testbed.metrics.recorded import Recorded
from testbed.steps import Step

FIRST_PORT = 5201  # of the first workload, as iperf3(1)'s; each has the next one
STALL = 0.5  # seconds that a program may be late before a report mentions it


class Way(Struct, frozen=True):
    """The way of a multicast stream: address and interface of the source, and the interface of each receiver."""

    source: str
    interface: str
    receivers: tuple[tuple[str, str], ...]


class Task(Struct, frozen=True):
    """A workload's name, its own port, and the addresses at which nodes reach each other (IP version 4 or 6).

    `way` is set for a multicast workload. `fastest` is the rate (bit/s) at which packets can get from one node to
    another, None where nothing limits it. `source_port` is the first of those that a client is to send from, where
    flows are spread by their ports, else None.
    """

    name: str
    port: int
    reach: Callable[[str, str, int | None], str]
    way: Way | None = None
    fastest: Callable[[str, str], float | None] = lambda *_: None
    source_port: int | None = None

    def target(self, source: str, node: str, interface: str | None, family: str | None) -> str:
        """Return the address of a server at `node`, of one of its interfaces or of one family if these are given."""
        version = {"ipv4": 4, "ipv6": 6, None: None}[family]
        return self.reach(source, f"{node}:{interface}" if interface else node, version)

    def bound(self, node: str, interface: str, to: str, target: str, by_interface: bool) -> str:
        """Return the address of a client's interface; with `by_interface` its packets leave by that as well."""
        address = self.reach(to, f"{node}:{interface}", 6 if ":" in target else 4)
        return f"{address}%{interface}" if by_interface else address


def began_late(name: str, start: Measured | None, at: float) -> Iterator[tuple[float, str, str]]:
    """Yield a doubt if the first data of a flow left long after its time."""
    if start is not None and start.value - at >= STALL:
        seen = f"its first data left at {start.value:.1f} s, {start.value - at:.1f} s after its time (`at`)"
        yield start.value - at, f"what {name} was to measure at a time", seen


class Expected(Struct, frozen=True):
    """What a program was to do beside measuring, its value if it has one, and whether it did."""

    what: str
    expected: str
    value: float | None
    passed: bool
    why: str = ""


class Workload(Protocol):
    """A program or several that run in a lab for a while and are measured."""

    @property
    def at(self) -> float:
        """The start, in seconds on the run's clock."""

    def seconds_long(self) -> float:
        """Return how long it runs, in seconds."""

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) for every node that it names."""

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for each fault."""

    def requires(self) -> tuple[Feature, ...]:
        """Return the features that it needs."""

    def servers(self, task: Task) -> list[Step]:
        """Return the steps before t = 0."""

    def clients(self, task: Task) -> list[Step]:
        """Return the steps that start at its time."""

    def failure(self, name: str, folder: Recorded) -> str:
        """Return the error that its output reports, "" if there is none."""

    def metrics(self) -> tuple[str, ...]:
        """Return the names of the metrics of `read`, without the workload's name."""

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return the metrics, read from the raw files alone; what was not measured is left out."""

    def expectations(self, name: str, folder: Recorded) -> Iterator[Expected]:
        """Yield what was expected of its programs, which checks are made of."""

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield (how bad, which figures, why) where a program and not the network limited a figure."""
