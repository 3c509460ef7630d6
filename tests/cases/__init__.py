"""Cases that nobody here invented: files reduced from public reports, and what must come of each (table.yaml).

The first lines of a file say where it comes from. `python -m tests.cases` runs them and prints a table; words after it
choose by the beginning of a file's name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.language import parsing

FOLDER = Path(__file__).parent
_NAME = f"case-{os.getpid()}"  # of a lab that is up
_MUST = re.compile(r"^# must come out: (.*)$", re.M)


@dataclass(frozen=True, slots=True)
class Case:
    """A file, where it runs, the exit status that it must have, and what must be said (a regular expression).

    `on` is `check` where that alone judges, else a machine. `quick`: it takes less than five seconds. `must` is what
    must come out, in words, where the file does not say it. `sets` are options of `--set`.
    """

    file: str
    on: str
    status: int = 0
    says: str = ""
    not_says: str = ""
    verb: str = "run"
    quick: bool = False
    sets: tuple[str, ...] | list[str] = ()
    must: str = ""

    @property
    def path(self) -> Path:
        """The file itself."""
        return FOLDER / f"{self.file}.yaml"

    @property
    def expected(self) -> str:
        """What must come out, in words."""
        found = _MUST.search(self.path.read_text())
        return self.must or (found[1] if found else "all checks of the file hold")


def cases() -> tuple[Case, ...]:
    """Return the rows of the table."""
    rows: list[dict[str, Any]] = parsing.parse((FOLDER / "table.yaml").read_text(), "table.yaml").data
    return tuple(Case(**row) for row in rows)


def command(case: Case, results: Path) -> tuple[str, ...]:
    """Return the command line of a case, without its file."""
    if case.on == "check":
        return ("check",)
    if case.verb == "up":
        return ("up", "--machine", case.on, "--name", _NAME)
    return ("run", "--machine", case.on, "--results", str(results))


def _sets(case: Case) -> Iterator[str]:
    for assignment in case.sets:
        yield from ("--set", assignment)


def perform(case: Case, results: Path, timeout: float = 300) -> tuple[bool, str]:
    """Run a case; return whether it came out as it must, and what was seen."""
    words = (sys.executable, "-m", "testbed", *command(case, results), str(case.path), *_sets(case))
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, cwd=FOLDER / "public")
    if case.verb == "up" and done.returncode == 0:
        subprocess.run((sys.executable, "-m", "testbed", "down", _NAME), capture_output=True, check=False)
    said = done.stdout + done.stderr
    good = done.returncode == case.status and re.search(case.says, said) is not None
    good = good and not (case.not_says and re.search(case.not_says, said))
    return good, "; ".join((f"status {done.returncode}", *_seen(said)))


def _seen(said: str) -> Iterator[str]:
    """Yield what tells most of what was said: errors at their places, and checks."""
    for row in said.splitlines():
        if (match := re.match(r".*\.yaml:[0-9:]+ (.*)", row)) or (match := re.match(r"((?:testbed|failed): .*)", row)):
            yield match[1][:150]
        elif re.match(r"  (?:pass|FAIL) ", row):
            yield " ".join(row.split())
