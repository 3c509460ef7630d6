"""Requests under way: generators that the holder resumes at their time, or when a process ends."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

from msgspec import Struct, field

from testbed import faults
from testbed.errors import LabError, TestbedError
from testbed.lab import answers
from testbed.lab.answers import Answer, Progress
from testbed.lab.messages import Line
from testbed.lab.state import Lab, Process

# What code raises for values of the right type that nobody foresaw: the request fails then, and not the lab.
ODD = (ValueError, TypeError, LookupError, OverflowError, struct.error)

Task = Generator[float, None, None]


class Job(Struct, eq=False):
    """A request under way: resumed at `wake` or when a process ends; `line` is None when nobody waits for it."""

    verb: str
    line: Line | None
    task: Task
    wake: float = 0.0
    cancelled: bool = False


class Holder(Struct):
    """The lab and who talks to it; the lab ends with its owner's connection until it is kept."""

    lab: Lab
    owner: Line | None
    about: dict[str, object]
    jobs: list[Job] = field(default_factory=list)
    waiting: dict[int, tuple[Line, Process, int]] = field(default_factory=dict)
    entered: dict[Line, list[int]] = field(default_factory=dict)  # the namespaces of commands run from outside
    busy: str = ""
    ending: bool = False


def cancel(holder: Holder, job: Job, why: str) -> None:
    """Let a job end before its time: it goes on with what it does at its end, which may take a while."""
    if not job.cancelled:
        job.cancelled = True
        advance(holder, job, lambda task: task.throw(LabError(f"lab {holder.lab.name}: {why}")))


def advance(holder: Holder, job: Job, step: Callable[[Task], float]) -> None:
    """Resume a job, and answer whoever waits for it when it is over."""
    try:
        job.wake = time.monotonic() + step(job.task)
        return
    except StopIteration:
        tell(job.line, answers.done())
    except TestbedError as e:
        tell(job.line, answers.failed(e))
    except OSError as e:
        tell(job.line, answers.failed(LabError(f"lab {holder.lab.name}: {job.verb}: {faults.words(e)}")))
    except ODD as e:
        tell(job.line, answers.failed(faults.known(e)))
    holder.jobs.remove(job)
    for other in holder.jobs:
        other.wake = 0.0  # one may wait for the end of this


def tell(line: Line | None, answer: Answer) -> None:
    """Send an answer, or progress, which is dropped for one who does not read it."""
    if line is not None and not (isinstance(answer, Progress) and line.outbox):
        with suppress(OSError):  # it is gone: the loop will see that
            line.send(answers.encode(answer))


@contextmanager
def busy(holder: Holder, what: str) -> Iterator[None]:
    """Keep the lab for one job at a time; LabError when another has it."""
    if holder.busy:
        raise LabError(f"lab {holder.lab.name}: it is busy with `{holder.busy}`; try again when that is over")
    holder.busy = what
    try:
        yield
    finally:
        holder.busy = ""
