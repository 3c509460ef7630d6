"""What can go wrong, one exit status per branch.

TestbedError
CheckFailed   exit 1  everything ran and a stated expectation did not hold
InputError    exit 2  the YAML or the command line is wrong; nothing was created
LabError      exit 3  Linux refused a step, or a Wait ran out
Unsupported   exit 4  no machine offers a required feature; nothing was created
BugError      exit 70 anything else (EX_SOFTWARE of sysexits.h): a mistake in testbed, with its traceback
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


class BugError(TestbedError):
    """A mistake in testbed itself: what happened in one line, and the traceback below it."""

    exit_status = 70


class Problem(NamedTuple):  # and no Struct: a pytest that uses no lab has this module alone
    """One thing wrong with the input: its place, what is wrong, the offending line and, if any, a hint.

    `line` and `column` count from 1; 0 means that there is no such place (an option of the command line). `text` is the
    line there, or of a long one the part around the place, which is in column `caret` of it (0: in `column`). A warning
    has a name, by which a file can silence it.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    text: str = ""
    width: int = 1
    hint: str = ""
    caret: int = 0
    name: str = ""

    def __str__(self) -> str:
        from testbed.plain import line, shown

        place = f"{self.file}:{self.line}:{self.column}: " if self.line else f"{self.file}: " if self.file else ""
        rows = [line(f"{place}{self.message}{self.hint and f' ({self.hint})'}{self.name and f' [{self.name}]'}")]
        if self.line:
            start = (self.caret or self.column) - 1
            before, marked, after = (
                shown(part, keep="\t")
                for part in (self.text[:start], self.text[start : start + self.width], self.text[start + self.width :])
            )
            # A tab is as wide in the caret line as in the line above it.
            margin = "".join("\t" if c == "\t" else " " for c in before)
            rows += [f"    {before}{marked}{after}", f"    {margin}{'^' * max(1, len(marked))}"]
        return "\n".join(rows)

    def warning(self) -> str:
        """Return it as what it is when it is not taken for an error."""
        return str(self._replace(message=f"warning: {self.message}"))


SHOWN = 100  # problems that the text of an error has


class InputError(TestbedError):
    """The input is wrong; `problems` has every reason at once, in the order of the file; its text has the first 100."""

    exit_status = 2

    def __init__(self, *problems: Problem | str) -> None:
        """Take problems, or plain sentences for faults without a place."""
        found = [p if isinstance(p, Problem) else Problem(p) for p in problems]
        self.problems = tuple(sorted(found, key=lambda p: (p.file, p.line, p.column)))
        rows = [str(p) for p in self.problems[:SHOWN]]
        if (more := len(self.problems) - SHOWN) > 0:
            rows.append(f"and {more} more problem{'s' if more > 1 else ''}: mend these first, and check again")
        super().__init__("\n".join(rows))

    def __reduce__(self) -> tuple[type[InputError], tuple[Problem | str, ...]]:
        """Rebuild from the problems: an exception's default pickling would pass the text."""
        return InputError, self.problems
