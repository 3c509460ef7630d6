"""Jobs: requests in progress, as generators that the holder resumes at a time, or when a process ends."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress

from msgspec import Struct, field

from testbed.errors import LabError, TestbedError
from testbed.lab import answers
from testbed.lab.answers import Answer, Progress
from testbed.lab.messages import Line
from testbed.lab.state import Lab, Process
from testbed.linux import faults

# Errors of code for unforeseen values of the right type: they fail the request and not the lab.
ODD = (ValueError, TypeError, LookupError, OverflowError, struct.error)

Task = Generator[float, None, None]


class Job(Struct, eq=False):
    """A request in progress, resumed at `wake` or when a process ends; `line` is None if nobody waits for it."""

    verb: str
    line: Line | None
    task: Task
    wake: float = 0.0
    cancelled: bool = False


class Holder(Struct):
    """The lab and its connections; it ends with its owner's connection unless it is kept."""

    lab: Lab
    owner: Line | None
    about: dict[str, object]
    jobs: list[Job] = field(default_factory=list)
    waiting: dict[int, tuple[Line, Process, int]] = field(default_factory=dict)
    entered: dict[Line, list[int]] = field(default_factory=dict)  # namespaces of commands run from outside
    busy: str = ""
    ending: bool = False


def cancel(holder: Holder, job: Job, why: str) -> None:
    """Cancel a job: it still performs its clean-up, which may take a while."""
    if not job.cancelled:
        job.cancelled = True
        advance(holder, job, lambda task: task.throw(LabError(f"lab {holder.lab.name}: {why}")))


def advance(holder: Holder, job: Job, step: Callable[[Task], float]) -> None:
    """Resume a job; send the answer when it is done."""
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
    """Send an answer or progress; progress is dropped for a reader that does not keep up."""
    if line is not None and not (isinstance(answer, Progress) and line.outbox):
        with suppress(OSError):  # it is gone: the loop will see that
            line.send(answers.encode(answer))


@contextmanager
def busy(holder: Holder, what: str) -> Iterator[None]:
    """Reserve the lab for one job; raise LabError if another has it."""
    if holder.busy:
        raise LabError(f"lab {holder.lab.name}: it is busy with `{holder.busy}`; try again when that is over")
    holder.busy = what
    try:
        yield
    finally:
        holder.busy = ""
