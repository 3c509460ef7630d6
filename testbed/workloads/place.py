"""What a workload may know: its name, addresses of nodes, a free port, and where its files go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from msgspec import Struct

from testbed.features import Feature
from testbed.metrics.measured import Measured
from testbed.metrics.recorded import Recorded
from testbed.steps import Step

STALL = 0.5  # seconds that a program may be late before a report says so


class Way(Struct, frozen=True):
    """The way of a multicast stream: the source's address and interface, and the interface of each receiver."""

    source: str
    interface: str
    receivers: tuple[tuple[str, str], ...]


class Task(Struct, frozen=True):
    """A workload's name, its own port, and the address of a node as another node reaches it (family 4, 6).

    `way` is that of a multicast workload.
    """

    name: str
    port: int
    reach: Callable[[str, str, int | None], str]
    way: Way | None = None


class Workload(Protocol):
    """Something that runs in a lab for a while and is measured."""

    @property
    def at(self) -> float:
        """When it starts, in seconds of the run's clock."""

    def seconds_long(self) -> float:
        """Return how long it runs."""

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) of every node it names."""

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for what can't work."""

    def requires(self) -> tuple[Feature, ...]:
        """Return what the machine must offer."""

    def servers(self, task: Task) -> list[Step]:
        """Return what must run before t = 0."""

    def clients(self, task: Task) -> list[Step]:
        """Return what starts at its time."""

    def failure(self, name: str, folder: Recorded) -> str:
        """Return what its own output says went wrong, "" when it went well."""

    def metrics(self) -> tuple[str, ...]:
        """Return the names that `read` gives, without the workload's own."""

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return what was measured, from the raw files alone; what is not there is left out."""

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield (how bad, which figures, what was seen) of what the programs limited, and not the network."""
