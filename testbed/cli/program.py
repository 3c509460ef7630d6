"""The program: what a command line asks for; `exec` in its plain form waits for no parser of the others."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from testbed.cli.process import execute, perform


def script() -> NoReturn:
    """Be the program, and end without taking some hundred modules apart, which would cost 40 ms."""
    status = 70
    try:
        perform(lambda: _verb(sys.argv[1:])())
    except SystemExit as e:
        status = int(e.code or 0)
    finally:
        if (fault := sys.exc_info()[1]) is not None:  # one of those few lines that tell of the others
            sys.excepthook(type(fault), fault, fault.__traceback__)
        os._exit(status)


def _verb(words: Sequence[str]) -> Callable[[], object]:
    """Return what a command line asks for: `exec LAB NODE COMMAND` in its plain form is understood without typer."""
    match words:
        case ["exec", lab, node, *argv] if not any(w.startswith("-") for w in (lab, node)) and argv not in ([], ["--"]):
            return lambda: execute(lab, node, argv)
    if "_TESTBED_COMPLETE" not in os.environ:
        from testbed.cli.verbs import find

        if (verb := find(words)) is not None:
            return verb
    # What typer uses of click that will be gone is for them to mend: where warnings are errors, this would be a bug.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="typer")
    from testbed.cli import app as cli

    return cli.command_line
