"""Progress on stderr, and what is told there meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from testbed import plain

if TYPE_CHECKING:
    from rich.console import Console

    from testbed.errors import Problem
    from testbed.machines.choose import Choice


def tell(choice: Choice, asked: str) -> None:
    """Say where a lab is going to be, and why."""
    if asked == "auto":  # else it is known
        print(choice, file=sys.stderr)


def say(text: str) -> None:
    """Say a sentence of the program's own."""
    print(f"testbed: {plain.shown(text)}", file=sys.stderr)  # here, for while progress is drawn that prints


def warn(warning: Problem) -> None:
    """Say a warning of a file, at its place."""
    print(warning.warning(), file=sys.stderr)


@contextmanager
def progress(title: str, seconds: float = 0.0, prefix: str = "") -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show progress on stderr: a bar on a terminal, a line an event elsewhere."""
    if not sys.stderr.isatty():

        def line(value: dict[str, Any]) -> None:
            if "step" in value:
                print(f"{prefix}{value['t']:8.3f} s  {value['step']}", file=sys.stderr)
            elif "started" in value:
                print(f"{prefix}{title}: started, {seconds:g} s", file=sys.stderr)

        yield line
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    title = plain.line(title)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(), transient=True) as progress:
        task = progress.add_task(f"{prefix}{title}: making the lab", total=None)

        def show(value: dict[str, Any]) -> None:
            if "step" in value:
                progress.update(task, completed=value["t"])
                progress.console.print(
                    f"{value['t']:8.3f} s  {plain.line(value['step'])}", markup=False, highlight=False
                )
            elif "started" in value:
                progress.update(task, description=f"{prefix}{title}: running", total=seconds or None, completed=0)
            elif value.get("waiting"):
                progress.update(task, description=f"{prefix}{title}: waiting for {value['waiting']} conditions")

        yield show


@contextmanager
def fraction() -> Iterator[Callable[[str, float], None]]:
    """Show how far something is on stderr: a bar on a terminal, a line a step elsewhere."""
    began, said = time.monotonic(), [""]
    if not sys.stderr.isatty():

        def line(text: str, _: float) -> None:
            if text != said[0]:
                said[0] = text
                print(f"{time.monotonic() - began:7.1f} s  {text}", file=sys.stderr)

        yield line
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda text, fraction: progress.update(task, description=plain.line(text), completed=fraction)


def _console() -> Console:
    """Return where progress is drawn: the terminal itself, for drawing takes what a `Screen` would spell out."""
    from rich.console import Console

    return Console(file=sys.__stderr__, emoji=False)
