"""The five kinds of step, the parts of a plan: data that prints as the command a person would type.

A step prints as one line, and its command can be pasted into bash.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from msgspec import Struct

from testbed.linux.wire import Message, Space
from testbed.plain import line, word, words

LAB = "-"  # in place of a node: the sandbox itself
ORIGIN = "clock.json"  # a word of a Spawn that waits for t = 0 of the run: the file that says when that is
AIR = "air"  # stands for the medium where nodes are named


class Request(Struct, frozen=True, tag=True):
    """A request to a namespace; its text is the equivalent ip(8), tc(8) or sysctl(8) command.

    Drivers define the classes of requests; `testbed.lab.travel` encodes them under their names.
    """


class Netlink(Protocol):
    """A request that is sent as one netlink message."""

    def __str__(self) -> str: ...

    def encode(self, space: Space) -> Message:
        """Encode for a namespace, which knows indexes and other numbers."""


class Delete(Request, frozen=True):
    """The opposite of a request that added something."""

    added: Netlink

    def __str__(self) -> str:
        return str(self.added).replace(" add ", " del ", 1)

    def encode(self, space: Space) -> Message:
        """Encode: in rtnetlink and mptcp_pm, the number of a deletion is that of the addition plus one."""
        m = self.added.encode(space)
        if m.family:
            return Message(m.kind, 0, bytes((m.body[0] + 1,)) + m.body[1:], m.family)
        return Message(m.kind + 1, 0, m.body)


class Probe(Struct, frozen=True, tag=True):
    """An observable fact, printed as a condition; `testbed.lab.probes` observes it."""


@runtime_checkable
class Shown(Protocol):
    """A probe that only reads files of /proc: lab.probes needs no code for it."""

    def files(self) -> tuple[str, ...]:
        """Return the files, such as /proc/self/net/tcp, which are read in the node's network namespace."""

    def lacking(self, *texts: str) -> str:
        """Return what they show instead, "" when the fact holds; a file that does not exist reads as "" (pure)."""


class Configure(Struct, frozen=True, tag=True):
    """One request to the kernel, about one node."""

    node: str
    request: Request
    at: float | None = None

    def __str__(self) -> str:
        return line(f"[{self.node}] {self.request}{_at(self.at)}")


class Write(Struct, frozen=True, tag=True):
    """A file that later steps read; `path` is relative to the lab's folder."""

    path: str
    text: str
    node: str = LAB

    def __str__(self) -> str:
        return f"[{self.node}] write {word(self.path)} ({len(self.text.splitlines())} lines)"


class Run(Struct, frozen=True, tag=True):
    """A command to completion (within seconds) that must exit 0.

    An `inline` one is performed in order with the requests around it, all others after the last request.
    """

    node: str
    argv: tuple[str, ...]
    within: float = 30.0
    inline: bool = False

    def __str__(self) -> str:
        return f"[{self.node}] {words(self.argv)}"


class Spawn(Struct, frozen=True, tag=True):
    """A long-running process; its output goes to `stdout` and `<node>/<name>.log` in the lab's folder.

    With `at`, it starts at that time and must end by itself within `within` seconds, with status 0. Without, it runs
    until the end of the lab or the run, and is stopped by the signal `stop`. With `may_end` any end will do, except
    being killed.
    A `forked` one is one of testbed's modules (the first word of `argv`), run by a copy of the holder.
    `drain` is a file that must have stopped growing before it is stopped, so that no data is lost.
    `pinned` ones share one processor.
    """

    node: str
    name: str
    argv: tuple[str, ...]
    stdout: str = ""
    at: float | None = None
    within: float | None = None
    stop: int = 15
    may_end: bool = False
    drain: str = ""
    pinned: bool = False
    forked: bool = False

    def __str__(self) -> str:
        python = "python3 -m " if self.forked else ""
        pin = "taskset -c 0 " if self.pinned else ""
        ends = f"{_at(self.at) or ' '} within {self.within:g}s" if self.within is not None else _at(self.at)
        into = f" > {word(self.stdout)}" if self.stdout else ""
        return f"[{self.node}]& {pin}{python}{words(self.argv)}{into}{ends}"


# s for a program to start its work: long, for busy emulated processors; a program that ends is reported at once.
START = 60.0


class Wait(Struct, frozen=True, tag=True):
    """Repeat a probe until it holds, for at most `within` seconds; `process` names the process that it depends on.

    Waits with an `urge` start after all others hold, no more at once than there are processors: they perform these
    requests first, and `again` after every `every` seconds in which the probe does not hold. With `steady`, a Wait also
    ends when the probe's text has been the same for that many seconds. An `inline` Wait is performed in order with the
    requests around it, all others after the last request.
    """

    node: str
    probe: Probe
    within: float = 15.0
    process: str = ""
    urge: tuple[Request, ...] = ()
    again: tuple[Request, ...] = ()
    every: float = 5.0
    steady: float = 0.0
    inline: bool = False

    def __str__(self) -> str:
        urged = f"  by {self.urge[-1]}" if self.urge else ""
        return line(f"[{self.node}]? {self.probe}  (within {self.within:g} s){urged}")


Step = Configure | Write | Run | Spawn | Wait


def _at(at: float | None) -> str:
    return "" if at is None else f"  @{at:g}s"
