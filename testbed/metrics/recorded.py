"""Read a results folder: typed and bounded; broken files are reported instead of believed.

Nothing in this module trusts the folder. A guest, another user, a full disk or a killed process may have left anything
in it: a link to another file, a FIFO that never answers, a number that is not finite, a time a million years away.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO, Protocol, TypeVar

from msgspec import Meta, Struct, ValidationError, field
from msgspec.json import Decoder

from testbed.metrics.said import Search, nobody

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Real = Annotated[float, Meta(ge=-1e15, le=1e15)]
Seconds = Annotated[float, Meta(ge=0, le=1e11)]
# Names that the kernel accepts for an interface (net/core/dev.c: dev_valid_name), as far as they are printable.
Ifname = Annotated[str, Meta(pattern=r"\A[^\s/:\x00-\x1f\x7f-\x9f]{1,15}\Z")]
Word = Annotated[str, Meta(pattern=r"\A[\x21-\x7e]{1,64}\Z")]

KIB, MIB = 1 << 10, 1 << 20
BEFORE, AFTER = 600.0, 60.0  # seconds that a time may be before t = 0, and after the end of the run
_SHORTEST = 1e-3  # seconds: the shortest interval of our programs
_RARE, MANY = 1e6, 20_000  # seconds between the lines of a file that has few, and how many it may have
LINE = 1000  # characters of a line of text: our programs write no longer ones

T = TypeVar("T")


class Stamped(Protocol):
    """A record with the time (CLOCK_MONOTONIC, seconds) when it was made."""

    @property
    def t(self) -> float:
        """Return the time (CLOCK_MONOTONIC, seconds)."""


S = TypeVar("S", bound=Stamped)


class Begun(Struct, frozen=True):
    """A line of NODE/flows.jsonl: when the test of a flow of iperf3 began at this node."""

    t: Seconds
    flow: Word


class BrokenError(Exception):
    """A file is not what a run writes; the text says why."""


class Recorded(Struct, frozen=True):
    """A results folder; `broken` collects the faults of its files, which are then treated as missing.

    Files in the folder `instead` are read in place of those with the same name. `origin` is t = 0 of the run on
    CLOCK_MONOTONIC, None if unknown; `seconds` is the run's length. With `complete` the run came to its end, and
    missing files are faults as well. `statuses` are those of the processes of the run, by node and name, and `absent`
    collects why metrics were not measured. `search` matches regular expressions.
    Workloads read what is in the `window` (seconds of the run) alone. `real` is t = 0 on CLOCK_REALTIME.
    """

    path: Path
    instead: Path | None = None
    origin: float | None = None
    seconds: float = 0.0
    complete: bool = False
    broken: list[str] = field(default_factory=list)
    statuses: dict[tuple[str, str], int] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    search: Search = nobody
    window: tuple[float, float] | None = None
    real: float = 0.0

    def inside(self, t: float) -> bool:
        """Return whether a time of the run is in the part of it that is looked at."""
        return self.window is None or self.window[0] <= t <= self.window[1]

    def within(self, t: float) -> bool:
        """Return whether a time of CLOCK_MONOTONIC can belong to this run."""
        return self.origin is not None and self.origin - BEFORE <= t <= self.origin + self.seconds + AFTER

    def note(self, name: str, why: object, lost: str) -> None:
        """Record what is wrong with a file, and which metrics are missing because of it."""
        if (text := f"{name}: {why}: {lost}") not in self.broken:
            self.broken.append(text)

    def _unread(self, place: str, why: OSError | BrokenError, lost: str) -> None:
        """Record why a file was not read; a missing one is a fault only if the run came to its end."""
        if not isinstance(why, FileNotFoundError):
            self.note(place, why.strerror if isinstance(why, OSError) else why, lost)
        elif self.complete and lost:
            self.note(place, "it is not there", lost)

    def _opened(self, name: str) -> BinaryIO:
        if self.instead is not None:
            with suppress(FileNotFoundError):
                return _opened(self.instead, name)
        return _opened(self.path, name)

    def data(self, name: str, most: int, lost: str) -> bytes | None:
        """Return a file's bytes, None if it is missing or broken, for example longer than `most`."""
        try:
            with self._opened(name) as file:
                if len(found := file.read(most + 1)) > most:
                    raise BrokenError(f"longer than {most} bytes")
                return found
        except (OSError, BrokenError) as e:
            self._unread(name, e, lost)
        return None

    def text(self, name: str, most: int, lost: str) -> list[str]:
        """Return the lines of a text, each cut at LINE characters; none if it is missing or broken."""
        data = self.data(name, most, lost) or b""
        return [line[:LINE] for line in data.decode(errors="replace").splitlines() if line]

    def value(self, name: str, kind: type[T], most: int, lost: str) -> T | None:
        """Return a JSON file as a record, None if it is missing or broken."""
        if (data := self.data(name, most, lost)) is None:
            return None
        if not data.strip():  # its writer was killed before it wrote anything
            if self.complete and lost:
                self.note(name, "it is empty", lost)
            return None
        try:
            return _decoded(Decoder(kind), data)
        except BrokenError as e:
            self.note(name, e, lost)
            return None

    def began(self, node: str, flow: str) -> float | None:
        """Return when a flow began at one of its nodes, in seconds of the run; None if nobody saw it."""
        found = self.rows(f"{node}/flows.jsonl", Begun, _RARE, KIB, "", MANY)
        return next((row.t - (self.origin or 0.0) for row in found if row.flow == flow), None)

    def first(self, name: str, kind: type[S], line: int) -> S | None:
        """Return the first record of a .jsonl file that `rows` has read, also if it is long before t = 0."""
        with suppress(OSError, BrokenError), self._opened(name) as file:
            row = _decoded(Decoder(kind), file.readline(MIB + line + 1))
            return row if self.within(row.t) else None
        return None

    def rows(self, name: str, kind: type[S], every: float, line: int, lost: str, burst: int = 16) -> list[S]:
        """Return the records of a .jsonl file, one each `every` seconds; none if it is missing or broken.

        `burst` is how many may come at once. Without `lost` the file need not be there. A line has at most MIB + `line`
        bytes, and the file 4 MIB plus `line` bytes for each record of the run. Times must be within the run and must
        not go back; of records before t = 0 only the last is kept. An unfinished last line, which a killed process
        left, is ignored.
        """
        if self.origin is None:  # the times of the run are unknown
            return []
        every = max(every, _SHORTEST)
        most = 4 * MIB + line * (int((self.seconds + AFTER) / every) + burst)
        decoder, found = Decoder(kind), list[S]()
        number = size = 0
        first = 0.0
        try:
            with self._opened(name) as file:
                while (text := file.readline(MIB + line + 1)).endswith(b"\n"):
                    number, size = number + 1, size + len(text)
                    row = _decoded(decoder, text)
                    if not self.within(row.t):
                        raise BrokenError(f"its time, {row.t:g}, is outside of the run")
                    if found and row.t < found[-1].t:
                        raise BrokenError("its time is before that of the line above it")
                    first = row.t if number == 1 else first
                    if number > (row.t - first) / every + burst:
                        raise BrokenError(f"there are more lines than one each {every:g} s")
                    if size > most:
                        raise BrokenError(f"the file is longer than {most} bytes")
                    if row.t <= self.origin:
                        found.clear()
                    found.append(row)
                number += 1
                if len(text) > MIB + line:
                    raise BrokenError(f"longer than {MIB + line} bytes")
        except (OSError, BrokenError) as e:
            place = f"{name}, line {number}" if number and isinstance(e, BrokenError) else name
            self._unread(place, e, lost)
        else:
            return found
        return []


def _decoded(decoder: Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except ValidationError as e:
        raise BrokenError(f"not what a run writes ({e})") from e
    except (ValueError, RecursionError) as e:  # UnicodeDecodeError is one
        raise BrokenError("not valid JSON") from e


def _folder(path: Path, parts: str) -> int:
    """Open a folder in a results folder; no part of its path may be a link."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in filter(None, parts.split("/")):
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _opened(path: Path, name: str) -> BinaryIO:
    """Open a regular file in a results folder, and nothing else: opening a FIFO waits, and a device may react."""
    parts, _, last = name.rpartition("/")
    folder = _folder(path, parts)
    try:
        if not stat.S_ISREG(os.stat(last, dir_fd=folder, follow_symlinks=False).st_mode):
            raise BrokenError("not a regular file")
        fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)
    file = os.fdopen(fd, "rb")
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # it was replaced meanwhile
        file.close()
        raise BrokenError("not a regular file")
    return file
