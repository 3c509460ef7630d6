"""Workload `command`: any program in a node, which must exit with status 0; its duration is measured."""

from collections.abc import Iterator

from pydantic import Field

from testbed.features import Feature
from testbed.metrics.measured import Measured
from testbed.metrics.recorded import Recorded
from testbed.spec import Spec
from testbed.steps import Spawn, Step
from testbed.units import Argv, Moment
from testbed.workloads.place import Task


class Command(Spec):
    """A program and its arguments as a list; its output goes to the results folder."""

    node: str
    argv: Argv
    seconds: Moment = Field(60, gt=0, description="It is killed, and the run fails, when it takes longer")
    at: Moment = 0.0

    def seconds_long(self) -> float:
        """Return the longest time that the program may run."""
        return float(self.seconds)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) for every node that it names."""
        return (("node", self.node),)

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for each fault."""
        return []

    def requires(self) -> tuple[Feature, ...]:
        """Return the features that it needs."""
        return ()

    def servers(self, task: Task) -> list[Step]:
        """Return nothing."""
        return []

    def clients(self, task: Task) -> list[Step]:
        """Return the process."""
        name = f"{task.name}.command"
        out = f"{self.node}/{name}.out"
        return [Spawn(self.node, name, self.argv, stdout=out, at=self.at, within=float(self.seconds))]

    def failure(self, name: str, folder: Recorded) -> str:
        """Return "": the run records the exit status of a command."""
        return ""

    def metrics(self) -> tuple[str, ...]:
        """Return no names: a command measures nothing itself."""
        return ()

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return no metrics; a failed command fails the run."""
        return {}

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield nothing."""
        yield from ()
