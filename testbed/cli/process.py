"""A verb as a process: signals, errors as sentences, exit statuses; and `exec`, which waits for no other import."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from testbed.cli.screen import screens
from testbed.errors import BugError, InputError, LabError, TestbedError
from testbed.lab import asker
from testbed.linux import faults

# Everything else is imported where an error is told as one: what a library can't be loaded for, for example.
if TYPE_CHECKING:
    from testbed.machines.elsewhere import Elsewhere


NOT_RUN = 125  # the status of `exec` when no command was run, as env(1) and `docker exec` have it; then 126 and 127


def perform(verb: Callable[[], object]) -> NoReturn:
    """Run what a command line asks for; every error ends with its own exit status, told in a sentence."""
    gc.set_threshold(200_000)  # a short life: collecting what imports and plans make costs as much as making it
    status: list[int] = []

    def interrupted(number: int, _: object) -> NoReturn:
        """End as a command does that a signal ends; a lab that is being made or run goes with us."""
        with suppress(OSError):
            os.write(2, f"testbed: interrupted ({signal.Signals(number).name})\n".encode())
        status.append(128 + number)
        raise SystemExit(status[0])

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    # Who started us may ignore it: the kernel would then tell nobody how a child ended (wait(2)).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with screens():
        ended = _performed(verb)
    raise SystemExit(status[0] if status else ended)


def _performed(verb: Callable[[], object]) -> int:
    """Run a verb, say what went wrong, and return the exit status."""
    try:
        with faults.foreseen():
            if asker.read().tied:
                from testbed.lab.enter import end_with_parent

                end_with_parent()
            ended = 0
            try:
                verb()
            except SystemExit as e:
                ended = e.code if isinstance(e.code, int) else int(e.code is not None)
            sys.stdout.flush()
            return ended
    except SystemExit as e:  # nobody reads what is printed
        return int(e.code or 0)
    except TestbedError as e:
        with suppress(LabError, SystemExit):
            sys.stdout.flush()  # what was said before comes before, also where both streams are one file
        with suppress(SystemExit):
            print(f"{e}" if isinstance(e, InputError) else f"testbed: {e}", file=sys.stderr)
            if isinstance(e, BugError):
                print(f"testbed: {faults.report()}", file=sys.stderr)
        return e.exit_status


def execute(lab: str, node: str, argv: Sequence[str]) -> NoReturn:
    """Run a command in a node, wherever its lab is; the exit status is the command's, or NOT_RUN."""
    from testbed.lab.enter import enter

    words = tuple(argv[1:] if argv[0] == "--" else argv)
    try:
        if (there := lab_elsewhere(lab)) is not None:
            raise SystemExit(there.enter(("exec", there.lab, node, "--", *words)))
        raise SystemExit(enter(lab, node, words))
    except TestbedError as e:
        e.exit_status = e.exit_status if isinstance(e, BugError) else NOT_RUN
        raise


def lab_elsewhere(lab: str) -> Elsewhere | None:
    """Return the machine that a lab is on, None when that is this one."""
    from testbed.lab import reach

    if "@" not in lab and (reach.listens(lab) or lab in reach.names() or lab not in reach.names(reach.GUESTS)):
        return None
    from testbed.machines import elsewhere

    return elsewhere.find(lab)
