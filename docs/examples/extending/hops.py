"""Workload `hops`: how many routers the answer of a node passes."""

from collections.abc import Iterator

from pydantic import Field

from testbed import features
from testbed.drivers import ttl
from testbed.metrics import table
from testbed.metrics.measured import Measured
from testbed.metrics.recorded import KIB, Recorded
from testbed.spec import Spec
from testbed.steps import Step
from testbed.units import Time
from testbed.workloads.place import Expected, Task


class Hops(Spec):
    """One echo request from one node to another."""

    from_: str = Field(alias="from")
    to: str
    at: Time = 0.0

    def seconds_long(self) -> float:
        """Return how long it runs, in seconds."""
        return 2.0

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) for every node that it names."""
        return (("from", self.from_), ("to", self.to))

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for each fault."""
        return [("to", "a node has no routers on the way to itself")] if self.from_ == self.to else []

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that it needs."""
        return (features.PING,)

    def servers(self, task: Task) -> list[Step]:
        """Return no servers: the kernel answers."""
        return []

    def clients(self, task: Task) -> list[Step]:
        """Return the steps that start at its time."""
        return [ttl.ask(self.from_, f"{task.name}.hops", task.reach(self.from_, self.to, None), self.at)]

    def failure(self, name: str, folder: Recorded) -> str:
        """Return no error: without an answer the metric is missing."""
        return ""

    def metrics(self) -> tuple[str, ...]:
        """Return the names that `read` gives."""
        return table.names("hops")

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return the number of routers, from the raw file alone."""
        lines = folder.text(f"{self.from_}/{name}.hops.txt", KIB, f"the metrics of {name} are missing")
        found = ttl.parse_ttl(lines)
        return {} if found is None else {"routers": Measured(ttl.INITIAL - found, table.unit("hops", "routers"))}

    def expectations(self, name: str, folder: Recorded) -> Iterator[Expected]:
        """Yield nothing: it only measures."""
        yield from ()

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield no doubts."""
        yield from ()
