"""The environment of a command line that another process has asked for: a test, or a machine over ssh."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import NamedTuple

_TIED, _AT, _FILE, _UNDER = "TESTBED_TIED", "TESTBED_AT", "TESTBED_FILE", "TESTBED_UNDER"
_MACHINE, _SPENT = "TESTBED_MACHINE", "TESTBED_SPENT"


class Asker(NamedTuple):  # and no Struct: `testbed exec` reads it, and imports the standard library alone
    """What a command line is told of the one that asked for it."""

    tied: bool = False  # the command line ends when the process that began it does
    at: str = ""  # what the asker adds to the name of a lab: @MACHINE
    file: str = ""  # how the asker calls the file that a lab is made from
    under: str = ""  # where the file is, here, that `topology:` of an experiment names
    machine: str = ""  # how the asker calls this machine
    spent: float = 0.0  # seconds that the asker has taken before it asked

    def variables(self) -> dict[str, str]:
        """Return the variables that tell this."""
        told = {_TIED: "1" if self.tied else "", _AT: self.at, _FILE: self.file, _UNDER: self.under}
        told |= {_MACHINE: self.machine, _SPENT: f"{self.spent:.3f}" if self.spent else ""}
        return {name: value for name, value in told.items() if value}


def read() -> Asker:
    """Return what this process was told."""
    told = os.environ.get
    return Asker(
        bool(told(_TIED)),
        told(_AT, ""),
        told(_FILE, ""),
        told(_UNDER, ""),
        told(_MACHINE, ""),
        _seconds(told(_SPENT, "")),
    )


def _seconds(text: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def untie(env: MutableMapping[str, str]) -> None:
    """Remove what is about one process alone from an environment that others inherit."""
    env.pop(_TIED, None)
