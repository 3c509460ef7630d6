"""Workload `command`: any program in a node, what it measures, and what it is expected to do."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from testbed.drivers.mptcpize import Wrapper, wrapped
from testbed.drivers.mptcpize import needs as wrapper_needs
from testbed.features import Feature
from testbed.metrics.measured import Measured
from testbed.metrics.recorded import Recorded
from testbed.metrics.said import MOST, AbsentError, captured, pointed
from testbed.spec import Spec
from testbed.steps import Spawn, Step
from testbed.units import Argv, Expression, Moment
from testbed.workloads.place import Expected, Task

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_UNIT = re.compile(r"[!-~]{1,20}")


def _pointer(value: str) -> str:
    if value and not re.fullmatch(r"(/([^~]|~[01])*)*", value, re.DOTALL):
        raise ValueError(f"{value!r} is not a JSON pointer (RFC 6901): write it as in /latency/p99")
    return value


def _unit(value: str) -> str:
    if not _UNIT.fullmatch(value):
        raise ValueError(f"{value!r} is not a unit: write up to 20 characters without spaces, such as ms or Mbit/s")
    return value


def _file(value: str) -> str:
    parts = value.split("/")
    if len(parts) > 3 or any(p in ("", ".", "..") or not p.isprintable() for p in parts):
        raise ValueError(f"{value!r} is not a file in the results folder: write a name, such as out.json")
    return value


class Figure(Spec):
    """A number in what the program wrote: `json` points at it, or group 1 of the last match of `regex` has it."""

    json_: Annotated[str, AfterValidator(_pointer)] | None = Field(
        None, alias="json", description="JSON pointer (RFC 6901), such as /latency/p99"
    )
    regex: Expression | None = Field(None, description="Python's; group 1 of its last match is the number")
    unit: Annotated[str, AfterValidator(_unit)] = Field(description="Such as ms, Mbit/s, or 1 for a plain number")
    better: Literal["higher", "lower"] | None = Field(None, description="Which way is an improvement")
    file: Annotated[str, AfterValidator(_file)] | None = Field(
        None, description="File in the results folder, the program's working directory; otherwise its standard output"
    )


class Expect(Spec):
    """What the program must do; each is a check with a case of its own in junit.xml."""

    status: int = Field(0, ge=0, le=255, description="Exit status")
    stdout: Expression | None = Field(None, description="A regular expression that something in its output matches")


class Command(Spec):
    """A program and its arguments as a list; its output goes to the results folder."""

    node: str
    argv: Argv
    seconds: Moment = Field(60, gt=0, description="It is ended, and the run fails, when it takes longer")
    at: Moment = 0.0
    metrics_: dict[str, Figure] = Field({}, alias="metrics", max_length=1000, description="What it measures, by name")
    mptcp: Wrapper | None = Field(
        None,
        description="What makes it speak MPTCP: mptcpize(8), or GODEBUG of Go programs; left out, it does it itself",
    )
    expect: Expect | None = Field(None, description="Checks of its exit status and output; otherwise it must exit 0")

    def seconds_long(self) -> float:
        """Return the longest time that the program may run."""
        return float(self.seconds)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) for every node that it names."""
        return (("node", self.node),)

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for each fault."""
        faults = []
        for name, figure in self.metrics_.items():
            if not _NAME.fullmatch(name):
                what = "a letter, then letters, digits and _, at most 64 in all"
                faults.append(("metrics", f"{name!r} is not a valid name of a metric: {what}"))
            if (figure.json_ is None) == (figure.regex is None):
                faults.append(("metrics", f"{name} needs exactly one of the keys json and regex"))
        return faults

    def requires(self) -> tuple[Feature, ...]:
        """Return the features that it needs."""
        return wrapper_needs(self.mptcp)

    def servers(self, task: Task) -> list[Step]:
        """Return nothing."""
        return []

    def clients(self, task: Task) -> list[Step]:
        """Return the process."""
        name = f"{task.name}.command"
        expected = self.expect is not None
        within = float(self.seconds)
        out = self._stdout(task.name)
        return [
            Spawn(
                self.node, name, wrapped(self.argv, self.mptcp), stdout=out, at=self.at, within=within, may_end=expected
            )
        ]

    def _stdout(self, name: str) -> str:
        return f"{self.node}/{name}.command.out"

    def failure(self, name: str, folder: Recorded) -> str:
        """Return "": the run records the exit status of a command."""
        return ""

    def metrics(self) -> tuple[str, ...]:
        """Return the names of what it measures."""
        return tuple(self.metrics_)

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return the numbers that the program wrote; the reasons for others are kept for checks of them."""
        found: dict[str, Measured] = {}
        if folder.window is not None:  # a number that it wrote is of the whole
            return found
        for key, figure in self.metrics_.items():
            file = figure.file or self._stdout(name)
            data = folder.data(file, MOST, "")
            try:
                if data is None:
                    raise AbsentError("it is not there, or can't be read")
                if figure.json_ is not None:
                    value = pointed(data, figure.json_)
                else:
                    value = captured(data, figure.regex or "", folder.search)
                found[key] = Measured(value, figure.unit)
            except AbsentError as e:
                folder.absent[f"{name}.{key}"] = f"{file}: {e}"
        return found

    def expectations(self, name: str, folder: Recorded) -> Iterator[Expected]:
        """Yield what was expected of the program, and what it did."""
        if self.expect is None or folder.origin is None:
            return
        status = folder.statuses.get((self.node, f"{name}.command"))
        why = "" if status is not None else "it did not run to its end"
        value = None if status is None else float(status)
        yield Expected(f"{name} exit status", f"= {self.expect.status}", value, status == self.expect.status, why)
        if self.expect.stdout is not None:
            data = folder.data(self._stdout(name), MOST, "")
            try:
                said = folder.search(data, self.expect.stdout) is not None if data is not None else False
                why = "" if said else "nothing in its output matches"
            except AbsentError as e:
                said, why = False, str(e)
            yield Expected(f"{name} stdout", f"matches {self.expect.stdout}", None, said, why)

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield what the program was to measure and did not."""
        self.read(name, folder)
        for key in self.metrics_:
            if why := folder.absent.get(f"{name}.{key}"):
                yield 0.0, f"{name}.{key}", f"it was not measured: {why}"
