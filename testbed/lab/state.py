"""A holder's knowledge of its lab, and the record of the steps that it has performed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from itertools import count
from pathlib import Path
from typing import TextIO

from msgspec import Struct, field

from testbed.errors import LabError
from testbed.lab.namespace import Namespace, Sockets
from testbed.metrics.records import Held
from testbed.results import written
from testbed.steps import LAB, Spawn, Step

Waiting = Generator[float, None, None]
Say = Callable[[dict[str, str | int | float | bool]], None]


class Process(Struct):
    """A process that the lab started; `status` is None while it lives, negative for a signal (as subprocess)."""

    node: str
    name: str
    pid: int
    log: Path
    began: float
    step: Spawn | None = None
    status: int | None = None
    ended: float = 0.0
    stopped: int = 0  # the signal that told it to end
    overdue: float = 0.0  # when it was told to end because it took too long


class Lab(Struct):
    """A lab, as its holder knows it."""

    name: str
    home: int  # the sandbox's own network namespace
    host: int  # and its UTS namespace
    folder: Path
    env: dict[str, str]
    nodes: dict[str, Namespace] = field(default_factory=dict)
    sockets: Sockets = field(default_factory=Sockets)
    processes: list[Process] = field(default_factory=list)
    done: list[Step] = field(default_factory=list)  # the performed steps that are in effect
    indexes: Iterator[int] = field(default_factory=lambda: count(2))  # indexes of interfaces; 1 is lo
    log: TextIO | None = None
    held: dict[str, Held] = field(default_factory=dict)
    sysctls: int = -1  # a /proc/sys, the node that it was last used for, and for how many it was used
    sysctls_of: str = ""
    sysctls_used: int = 0

    def space(self, node: str) -> Namespace:
        """Return a node's namespace; LAB stands for the sandbox itself."""
        try:
            return self.nodes[node]
        except KeyError as e:
            names = [n for n in self.nodes if n != LAB]
            known = ", ".join([*names[:8], *(["..."] if len(names) > 8 else [])]) or "none"
            raise LabError(f"lab {self.name}: there is no node {node} (nodes: {known})") from e


def note(lab: Lab, step: Step) -> None:
    """Record a performed step: in the lab's memory and, if there is a results folder, in commands.log."""
    lab.done.append(step)
    if lab.log:
        with written(Path(lab.log.name)):
            lab.log.write(f"{time.time():.6f} {step}\n")


def flush(lab: Lab) -> None:
    """Write the recorded steps."""
    if lab.log:
        with written(Path(lab.log.name)):
            lab.log.flush()
