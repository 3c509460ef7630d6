"""What can go wrong, one exit status per branch.

TestbedError
CheckFailed   exit 1  everything ran and a stated expectation did not hold
InputError    exit 2  the YAML or the command line is wrong; nothing was created
LabError      exit 3  Linux refused a step, or a Wait ran out
Unsupported   exit 4  no machine offers a required feature; nothing was created
"""

from __future__ import annotations

from typing import NamedTuple


class TestbedError(Exception):
    """The root: anything this program says on purpose."""

    __test__ = False  # pytest must not collect a class because of its name
    exit_status = 3


class CheckFailed(TestbedError):
    """A check of the experiment did not hold: a regression."""

    exit_status = 1


class LabError(TestbedError):
    """Linux refused a step (where, what, why), or something awaited did not come true in time."""

    exit_status = 3


class Unsupported(TestbedError):
    """A required feature is missing: names the feature, how that is known and how to get it."""

    exit_status = 4


class Problem(NamedTuple):  # and no Struct: a pytest that uses no lab has this module alone
    """One thing wrong with the input: its place, what is wrong, the offending line and, if any, a hint.

    `line` and `column` count from 1; 0 means that there is no such place (an option of the command line).
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    text: str = ""
    width: int = 1
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        rows = [f"{place}{self.message}{self.hint and f' ({self.hint})'}"]
        if self.line:
            # A tab is as wide in the caret line as in the line above it.
            margin = "".join("\t" if c == "\t" else " " for c in self.text[: self.column - 1])
            rows += [f"    {self.text}", f"    {margin}{'^' * max(1, self.width)}"]
        return "\n".join(rows)


class InputError(TestbedError):
    """The input is wrong; `problems` has every reason at once, in the order of the file."""

    exit_status = 2

    def __init__(self, *problems: Problem | str) -> None:
        """Take problems, or plain sentences for faults without a place."""
        found = [p if isinstance(p, Problem) else Problem(p) for p in problems]
        self.problems = tuple(sorted(found, key=lambda p: (p.file, p.line, p.column)))
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[InputError], tuple[Problem | str, ...]]:
        """Rebuild from the problems: an exception's default pickling would pass the text."""
        return InputError, self.problems
