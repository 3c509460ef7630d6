"""A results folder is reported again: that of one run or of several, of the present format or an older one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from testbed.errors import InputError, LabError, TestbedError
from testbed.metrics.recorded import Recorded
from testbed.report.report import Report, format_of, report
from testbed.report.together import Outcome, Which, rows
from testbed.results import FORMAT


def again(path: Path) -> Report:
    """Return the report of a run's folder and write what is derived into it."""
    if format_of(Recorded(path)) == FORMAT:
        return report(path)
    from testbed.runs import older  # late: it plans, and a folder of the present format needs no plan

    with TemporaryDirectory(prefix="testbed-") as made:
        older.bring(path, Path(made))
        return report(path, Path(made))


def each(path: Path) -> Iterator[Outcome]:
    """Yield the outcome of each run in the folder of several, in their order."""
    name, found = rows(path)
    for row in found:
        which, folder = Which(name, row.label, tuple(row.settings)), path / row.folder
        try:
            if folder.resolve() != path.resolve() / row.folder:
                raise InputError(f"{folder}: a link leads to another folder")
            if not folder.exists():
                raise LabError(f"{row.folder}: this run has left no results")
            yield Outcome(which, folder, again(folder))
        except TestbedError as e:
            yield Outcome(which, None, None, e)
