"""Cases of an experiment on another machine, whose results have their folders here."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from testbed import results
from testbed.errors import LabError
from testbed.machines import collected
from testbed.machines.case import Begin, Case, Perform, Performed, Say, Told
from testbed.machines.choose import MICROVM
from testbed.machines.collected import Taken
from testbed.machines.errands import Errand, Machine, asked, perform_on, target_of
from testbed.machines.guest import console, microvm, staging
from testbed.machines.guest.microvm import Guest
from testbed.machines.lab_guest import RESULTS, Made, Progress, Wanted, guest
from testbed.machines.ssh import known, remote, request
from testbed.machines.ssh.relayed import relayed
from testbed.machines.ssh.remote import Target
from testbed.machines.ssh.request import Request
from testbed.results import Folder

_LEFT = 5.0  # s for the removal of what a guest, which may go on writing, has left of a case: the rest goes with it
_REST = 2.0  # s that the end of an output may come after that of its command


@contextmanager
def cases(errand: Errand, lab: str, wanted: Wanted, told: Told, progress: Progress) -> Iterator[Perform]:
    """Yield a function that performs cases of an experiment elsewhere; its results have their folders here."""
    if errand.choice.machine != MICROVM:
        machine = target_of(known.find(errand.choice.machine))
        yield lambda number, begin, say: _case_there(machine, errand, number, begin, say, told)
        return
    with ExitStack() as kept:
        stage = kept.enter_context(staging.folder())
        guests: list[Made] = []

        def perform(number: int, begin: Begin, say: Say) -> Performed:
            if not (guests and _lives(guests[-1].guest)):  # also when it died of an earlier case
                guests.append(kept.enter_context(guest(lab, wanted, told, progress, stage)))
            return _case_in_guest(guests[-1], errand, number, begin, say, stage, told)

        yield perform


def _lives(found: Guest) -> bool:
    try:
        microvm.alive(found)
    except LabError:
        return False
    return True


def _case_in_guest(
    made: Made, errand: Errand, number: int, begin: Begin, say: Say, stage: Path, told: Told
) -> Performed:
    case = Case(begin, made.about(), say)
    try:
        status = _heard(made.guest, asked(made.guest, errand, f"{RESULTS}/{number}", number), case)
    except LabError:
        if case.folder is not None:
            _keep_console(made.guest, case.folder)
        raise
    finally:
        if case.folder is not None:
            taken = Taken(case.folder.path)
            try:
                collected.collect(stage / str(number), taken)
            finally:
                case.collected(taken, told)
                staging.discard(stage / str(number), _LEFT)
    return case.ended(status, made.guest.name)


def _case_there(machine: Target, errand: Errand, number: int, begin: Begin, say: Say, told: Told) -> Performed:
    made = asked(machine, errand, request.RESULTS, number)
    case = Case(begin, {"machine": machine.name}, say)
    broken: BaseException | None = None
    try:
        status = _heard(machine, made, case)
    except BaseException as e:
        broken = e
        raise
    finally:
        if case.folder is not None:
            taken = Taken(case.folder.path)
            try:
                remote.fetch(machine, made.token, taken)
            except LabError as e:
                results.discard(case.folder)
                if broken is None:
                    raise
                told(f"no results came: {e}")
            else:
                case.collected(taken, told)
    return case.ended(status, machine.name)


def _heard(machine: Machine, made: Request, case: Case) -> int:
    """Run a request whose output is that of a case, and return its exit status."""
    source, out = os.pipe2(os.O_CLOEXEC)
    try:
        with relayed((2,)) as (err,):
            return perform_on(machine, made, (out, err), (source, case.hear))
    finally:
        os.close(out)
        while select.select([source], [], [], _REST)[0] and (part := os.read(source, 1 << 16)):
            case.hear(part)
        os.close(source)


def _keep_console(found: Guest, folder: Folder) -> None:
    """Put the console of a guest that died into the results of its run."""
    with results.written(folder.path / "console.log"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(folder.path / "console.log", flags, 0o644), "wb") as file:
            file.write(console.text(found.console.fileno()))
