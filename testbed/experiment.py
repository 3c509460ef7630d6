"""An experiment file: a topology with parameters laid over it, and the cases that its matrix and repeats make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from testbed.document import Document, merge, parse
from testbed.errors import InputError, Problem
from testbed.topology import Topology, build, override

_OWN = ("topology", "matrix", "repeat", "seed")
_CASES = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """One run: its label ("" for the only one), what was set for it, and the topology that this gives."""

    label: str
    settings: tuple[str, ...]
    topology: Topology


@dataclass(frozen=True, slots=True)
class Experiment:
    """A file with its cases; `texts` are the verbatim inputs by the name that they have in a results folder."""

    path: Path
    cases: tuple[Case, ...]
    seed: int
    texts: dict[str, str]


def read(path: str | Path, overrides: tuple[str, ...] = (), base: Path | None = None) -> Experiment:
    """Read a topology or an experiment; InputError has every problem of the file.

    `base` stands in for the file that `topology:` names: a results folder holds its own copy.
    """
    file = Path(path)
    text = _text(file)
    document = parse(text, str(path))
    texts = {"topology.yaml": text}
    own: dict[str, object] = {}
    if isinstance(document.data, dict):
        own = {k: document.data[k] for k in _OWN if k in document.data}
        # A file is an experiment by its keys; these are not part of the language of a topology.
        document = Document({k: v for k, v in document.data.items() if k not in _OWN}, document.values, document.keys)
    problems = list(_faults(document, own))
    if isinstance(own.get("topology"), str):
        under_path = base or file.parent / str(own["topology"])
        if not under_path.is_file():
            raise InputError(
                *problems,
                document.at(("topology",)).problem(f"there is no file {own['topology']!r} beside this one"),
            )
        under_text = _text(under_path)
        texts = {"experiment.yaml": text, "topology.yaml": under_text}
        under = parse(under_text, str(under_path))
        document = merge(under, document)
    for assignment in overrides:
        document = override(document, assignment)
    if problems:
        try:
            build(document)
        except InputError as e:
            problems += e.problems
        raise InputError(*problems)
    matrix = own.get("matrix") or {}
    assert isinstance(matrix, dict)
    repeat = int(str(own.get("repeat", 1)))
    found = []
    for settings in _products(matrix):
        case = document
        for assignment in settings:
            case = override(case, assignment)
        topology = build(case)
        for n in range(repeat):
            label = "_".join([*(s.rpartition(".")[2] for s in settings), *([str(n + 1)] if repeat > 1 else [])])
            found.append(Case("".join(c if c.isalnum() or c in "=._%-" else "-" for c in label), settings, topology))
    return Experiment(file, tuple(found), int(str(own.get("seed", 0))), texts)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise InputError(Problem(f"cannot be read: {e.strerror}", str(path))) from e
    except UnicodeDecodeError as e:
        raise InputError(Problem(f"is not UTF-8 text: byte {e.start} is 0x{e.object[e.start]:02x}", str(path))) from e


def _faults(document: Document, own: dict[str, object]) -> Iterator[Problem]:
    if "topology" in own and not isinstance(own["topology"], str):
        yield document.at(("topology",)).problem("`topology` is the path of a file")
    for key in ("repeat", "seed"):
        value = own.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not (0 if key == "seed" else 1) <= value <= _CASES:
            yield document.at((key,)).problem(
                f"`{key}` is a whole number{'' if key == 'seed' else f' from 1 to {_CASES}'}"
            )
    matrix = own.get("matrix", {})
    if not isinstance(matrix, dict):
        yield document.at(("matrix",)).problem("`matrix` maps paths, such as links.cable.rate, to lists of values")
        return
    count = 1
    for path, values in matrix.items():
        if not isinstance(values, list) or not values or any(isinstance(v, list | dict) for v in values):
            yield document.at(("matrix", path)).problem(f"the values of {path} are a list of words and numbers")
        else:
            count *= len(values)
    if count * (own["repeat"] if isinstance(own.get("repeat"), int) else 1) > _CASES:  # type: ignore[operator]
        yield document.at(("matrix",)).problem(f"more than {_CASES} runs")


def _products(matrix: dict[str, list[object]]) -> Iterator[tuple[str, ...]]:
    for values in product(*matrix.values()):
        yield tuple(f"{path}={value}" for path, value in zip(matrix, values, strict=True))
