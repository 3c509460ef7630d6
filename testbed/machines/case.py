"""One case of an experiment on another machine; what that machine reports is not trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from testbed.errors import InputError, LabError, TestbedError, Unsupported
from testbed.lab.messages import BROKEN
from testbed.machines.collected import Taken
from testbed.metrics.records import Held
from testbed.plain import line
from testbed.results import Folder

Told = Callable[[str], None]
Say = Callable[[dict[str, Any]], None]
Begin = Callable[[Mapping[str, object]], Folder]  # makes the folder of a run, given what is known of its machine
Performed = tuple[Folder, dict[str, Any]]  # where the raw files are, and what the machine tells for the manifest
Perform = Callable[[int, Begin, Say], Performed]  # the case of that number
_LONGEST = 1 << 20  # bytes of a line
_ERRORS: Mapping[int, type[TestbedError]] = {e.exit_status: e for e in (InputError, LabError, Unsupported)}
_Text = Annotated[str, Meta(max_length=300)]


class Said(Struct, frozen=True):
    """A line that a machine sends while it performs a case."""

    began: bool = False  # nothing is missing there
    started: float | None = None
    waiting: int = 0
    t: float = 0.0
    step: str = ""
    failed: str = ""
    status: int = 3  # of who failed so


class Kernel(Struct, frozen=True):
    """The kernel of a machine (uname(2))."""

    release: _Text
    version: _Text
    architecture: _Text


class Host(Struct, frozen=True):
    """The size of a machine, and the rights that the lab had."""

    cpus: Annotated[int, Meta(ge=1, le=1 << 20)]
    user: Annotated[str, Meta(pattern="^(root|user)$")]
    cpu: _Text | UnsetType = UNSET


class About(Struct, frozen=True):
    """What a machine reports about itself and about the time of a run."""

    python: _Text
    kernel: Kernel
    host: Host
    tools: Annotated[dict[_Text, _Text], Meta(max_length=200)]
    began: float
    ended: float | None = None
    resources: Annotated[dict[_Text, Held], Meta(max_length=20)] = field(default_factory=dict)


_SAID = msgspec.json.Decoder(Said)
_ABOUT = msgspec.json.Decoder(About)


class Case(Struct):
    """What has arrived from a case so far."""

    begin: Begin
    about: Mapping[str, object]
    say: Say
    folder: Folder | None = None
    failed: Said | None = None
    inbox: bytes = b""
    skips: bool = False  # the rest of a line that is too long
    facts: dict[str, Any] = field(default_factory=dict)

    def hear(self, part: bytes) -> None:
        """Take the next bytes of the output; lines that are not understood are dropped."""
        *lines, self.inbox = (self.inbox + part).split(b"\n")
        for row in lines:
            if not self.skips:
                self._hear(row)
            self.skips = False
        if len(self.inbox) > _LONGEST:
            self.inbox, self.skips = b"", True

    def _hear(self, row: bytes) -> None:
        try:
            said = _SAID.decode(row)
        except BROKEN:
            return
        if said.began and self.folder is None:
            self.folder = self.begin(self.about)
        if said.failed:
            self.failed = said
        elif said.step and isfinite(said.t):
            self.say({"t": said.t, "step": said.step})
        elif said.started is not None:
            self.say({"started": said.started})
        elif said.waiting:
            self.say({"waiting": said.waiting})

    def collected(self, taken: Taken, told: Told) -> None:
        """Report the files that were not taken, and keep what the machine reports about itself."""
        self.facts = facts(taken.about)
        for name, why in taken.left.items():
            told(f"{name} is not taken into the results: {why}")

    def ended(self, status: int, machine: str) -> Performed:
        """Return what a case that was performed has left; raise what it ended with else."""
        if self.failed is not None:
            raise _ERRORS.get(self.failed.status, LabError)(self.failed.failed)
        if status >= 128 or status == 70:  # a signal, or a bug; it has said so
            raise SystemExit(status)
        if status or self.folder is None:
            raise LabError(f"machine {machine}: it ended with {status} and said no more of the run")
        return self.folder, self.facts


def facts(said: bytes) -> dict[str, Any]:
    """Return what a machine tells of itself, for a manifest; nothing when that can't be understood."""
    try:
        found = _ABOUT.decode(said)
    except BROKEN:
        return {}
    plain: dict[str, Any] = msgspec.to_builtins(found)
    lacking = [k for k in ("began", "ended") if plain[k] is None or not isfinite(plain[k])]
    plain["tools"] = {line(k): line(v) for k, v in found.tools.items()}
    return {k: v for k, v in plain.items() if k not in lacking}
