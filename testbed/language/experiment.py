"""An experiment file: a topology with parameters laid over it, and the cases that its matrix and repeats make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from msgspec import Struct

from testbed.errors import InputError, Problem
from testbed.language.document import Document
from testbed.language.parsing import parse
from testbed.language.topology import Topology

EXPERIMENT = ("topology", "matrix", "repeat", "seed")  # keys of a file beside those of a topology
_CASES = 1000
_LABEL = 150  # bytes
Setting = tuple[str, int, object]
Settings = tuple[Setting, ...]


class Case(Struct, frozen=True):
    """One run: its label ("" for the only one), what was set for it, and the topology that this gives.

    `name` and `number` are of the case and of its repeats; `data` is what a file of this case alone states.
    """

    label: str
    settings: tuple[str, ...]
    topology: Topology
    data: dict[str, Any] = {}
    name: str = ""
    number: int = 1
    warnings: tuple[Problem, ...] = ()


class Experiment(Struct, frozen=True):
    """A file with its cases; `texts` are the verbatim inputs by the name that they have in a results folder."""

    path: Path
    cases: tuple[Case, ...]
    seed: int
    texts: dict[str, str]
    under: Path | None = None  # the file that `topology:` names

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Return the warnings of all cases, each once, in the order of the file."""
        found = dict.fromkeys(w for case in self.cases for w in case.warnings)
        return tuple(sorted(found, key=lambda w: (w.file, w.line, w.column)))


def faults(document: Document, own: dict[str, object]) -> Iterator[Problem]:
    """Yield what is wrong with the keys of an experiment."""
    repeat = 1
    for key, least, most in (("repeat", 1, _CASES), ("seed", 0, 2**63 - 1)):
        value = own.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            yield document.at((key,)).problem(f"`{key}` must be a whole number from {least} to {most}")
        elif key == "repeat":
            repeat = value
    matrix = own.get("matrix", {})
    if not isinstance(matrix, dict):
        what = "`matrix` must be a mapping of paths to lists of values: `links.cable.rate: [10mbit, 20mbit]`"
        yield document.at(("matrix",), key=True).problem(what)
        return
    count = repeat
    for path, values in matrix.items():
        if not isinstance(values, list) or not values or any(isinstance(v, list | dict) for v in values):
            what = f"the values of {path} must be a list of words and numbers, such as [10mbit, 20mbit]"
            yield document.at(("matrix", path)).problem(what)
        else:
            count *= len(values)
    if count > _CASES:
        runs = str(count) if count <= 10**12 else "more than 10^12"  # Python writes no more than 4300 digits
        what = f"{runs} runs (every combination of the matrix, times `repeat`), and at most {_CASES} are allowed"
        yield document.at(("matrix",), key=True).problem(what)


def products(matrix: dict[str, list[object]]) -> Iterator[Settings]:
    """Yield, for each case, (path, index, value) of every path."""
    for chosen in product(*(list(enumerate(values)) for values in matrix.values())):
        yield tuple((path, n, value) for path, (n, value) in zip(matrix, chosen, strict=True))


def stated(settings: Settings) -> tuple[str, ...]:
    """Return what was set for a case, as `--set` takes it."""
    return tuple(f"{key}={_written(value)}" for key, _, value in settings)


def _written(value: object) -> str:
    """Return a value as `--set` takes it."""
    try:
        plain = parse(str(value), "").data
    except InputError:
        plain = None
    return str(value) if plain == value and type(plain) is type(value) else json.dumps(value)


def _distinct(paths: list[str]) -> list[str]:
    """Return the last part of each path, or as many of its last parts as no other path ends in."""

    def short(path: str) -> str:
        parts = path.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts)))
        others = [f".{other}" for other in paths if other != path]
        return next((end for end in ends if not any(o.endswith(f".{end}") for o in others)), path)

    return [short(path) for path in paths]


def label(settings: Settings, n: int = 0, repeat: int = 1) -> str:
    """Return what distinguishes a run from the others: the settings of its case, and its number if it is repeated."""
    keys = _distinct([path for path, _, _ in settings])
    words = [f"{key}={value}" for key, (_, _, value) in zip(keys, settings, strict=True)]
    words += [str(n + 1)] if repeat > 1 else []
    found = "".join(c if c.isalnum() or c in "=._%-" else "-" for c in "_".join(words))
    # It is a part of the name of a folder; folders that would be the same are numbered.
    return found if len(found.encode()) <= _LABEL else found.encode()[:_LABEL].decode(errors="ignore")
