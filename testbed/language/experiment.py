"""An experiment file: a topology with parameters laid over it, and the cases that its matrix and repeats make."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from msgspec import Struct

from testbed.errors import InputError, Problem
from testbed.files import content, root_of
from testbed.language.document import Document, Mark, Source, merge, override, parse, place
from testbed.language.topology import EXPERIMENT, Built, Topology, build, mapping

_CASES = 1000
_IDLE = 10  # cases in a row whose faults were all told before: the rest is not looked at
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


class Experiment(Struct, frozen=True):
    """A file with its cases; `texts` are the verbatim inputs by the name that they have in a results folder."""

    path: Path
    cases: tuple[Case, ...]
    seed: int
    texts: dict[str, str]
    under: Path | None = None  # the file that `topology:` names


def read(
    path: str | Path,
    overrides: tuple[str, ...] = (),
    base: Path | None = None,
    only: tuple[str, ...] | None = None,
) -> Experiment:
    """Read a topology or an experiment; InputError has every problem of the file.

    `base` stands in for the file that `topology:` names: a results folder holds its own copy. With `only` the
    experiment has the cases with these settings alone.
    """
    file = Path(path)
    text = _text(file, str(file), _option(str(path)))
    texts = {"topology.yaml": text}
    document = parse(text, str(path))
    mapping(document)
    document, problems = _overridden(document, [o for o in overrides if o.startswith("topology=")])
    if "topology" in document.data:
        under_text, under = _under(document, file.parent, base)
        texts = {"experiment.yaml": text, "topology.yaml": under_text}
        document = merge(under, document)
    document, wrong = _overridden(document, [o for o in overrides if not o.startswith("topology=")])
    # A file is an experiment by these keys; they are not part of the language of a topology.
    own = {k: document.data[k] for k in EXPERIMENT if k in document.data}
    document = Document({k: v for k, v in document.data.items() if k not in own}, document.values, document.keys)
    faults = list(_faults(document, own))
    problems += [*wrong, *faults]
    matrix = {} if faults else own.get("matrix", {})
    assert isinstance(matrix, dict)
    topologies, wrong = _built(document, matrix, only)
    if problems := [*problems, *wrong]:
        raise InputError(*dict.fromkeys(problems))
    repeat = int(str(own.get("repeat", 1)))
    cases = (
        Case(_label(settings, n, repeat), _stated(settings), topology, data, _label(settings), n + 1)
        for settings, (topology, data) in topologies.items()
        for n in range(repeat)
    )
    named = file.parent / str(own["topology"]) if "topology" in own else None
    return Experiment(file, tuple(cases), int(str(own.get("seed", 0))), texts, named)


def _built(
    document: Document, matrix: dict[str, list[object]], only: tuple[str, ...] | None
) -> tuple[dict[Settings, tuple[Topology, dict[str, Any]]], list[Problem]]:
    """Return the topology of each case with its data, and what is wrong with any: the same is said once."""
    found: dict[Settings, tuple[Topology, dict[str, Any]]] = {}
    problems: dict[Problem, None] = {}
    like: Built | None = None
    idle = 0
    for settings in _products(matrix):
        if only is not None and _stated(settings) != only:
            continue
        case, wrong = _case(document, settings)
        try:
            topology = build(case, like)
            found[settings] = (topology, case.data)
            like = like or Built(case.data, topology)
        except InputError as e:
            wrong += e.problems
        known = len(problems)
        problems |= dict.fromkeys(wrong)
        idle = idle + 1 if wrong and len(problems) == known else 0
        if idle == _IDLE:
            break  # a fault of the file itself is one of every case
    return found, list(problems)


def _option(words: str) -> Mark:
    """Return the place of what is not in a file: problems there begin with these words."""
    return Mark(Source(words, ()), 0, 0)


def _text(path: Path, name: str, mark: Mark, root: Path | None = None) -> str:
    """Return a file's text; `mark` is blamed when there is none, or when links lead out of `root`."""
    try:
        raw = content(path, root=root)
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        before, rows = raw[: e.start].decode(), raw.decode(errors="replace").splitlines()
        at = place(Source(name, tuple(rows)), before, len(before))
        cure = "save the file as UTF-8"
        raise InputError(at.problem(f"this is not UTF-8 text: the byte 0x{raw[e.start]:02x}", cure)) from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        why = e.strerror if isinstance(e, OSError) else str(e)
        if mark.source.rows:
            raise InputError(mark.problem(f"{name!r} can't be read: {why}", "a path counts from this file")) from e
        raise InputError(mark.problem(f"can't be read: {why}")) from e


def _under(document: Document, folder: Path, base: Path | None) -> tuple[str, Document]:
    """Return the topology that an experiment names, as text and parsed."""
    mark, name = document.at(("topology",)), document.data["topology"]
    if not isinstance(name, str):
        raise InputError(document.at(("topology",), key=True).problem("`topology` must be the path of a file"))
    path = base or folder / name
    # What a results folder keeps is a file of its own. Else the path says how far from the file it may be.
    root = Path(os.path.realpath(base.parent)) if base is not None else root_of(folder, name)
    text = _text(path, str(path), mark, root)
    under = parse(text, str(path))
    if "topology" in mapping(under):
        raise InputError(mark.problem(f"{name} is an experiment itself: name the topology that it builds on"))
    return text, under


def _overridden(document: Document, assignments: list[str]) -> tuple[Document, list[Problem]]:
    """Return the document with what `--set` says, and what is wrong with that."""
    problems: list[Problem] = []
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        mark = _option(f"--set {assignment}")
        try:
            if not equals or not dotted:
                raise InputError(mark.problem("write --set path.to.key=value"))
            document = override(document, dotted, parse(text, ""), mark, mark)
        except InputError as e:
            problems += [mark.problem(p.message, p.hint) for p in e.problems]
    return document, problems


def _case(document: Document, settings: Settings) -> tuple[Document, list[Problem]]:
    """Return the document with one value for each path of the matrix, and what is wrong with the paths."""
    problems: list[Problem] = []
    for path, n, value in settings:
        value_at, key_at = document.at(("matrix", path, n)), document.at(("matrix", path), key=True)
        try:
            document = override(document, path, Document(value), value_at, key_at)
        except InputError as e:
            problems += e.problems
    return document, problems


def _faults(document: Document, own: dict[str, object]) -> Iterator[Problem]:
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
        what = f"{runs} runs (every combination of the matrix, times `repeat`), and {_CASES} are the most"
        yield document.at(("matrix",), key=True).problem(what)


def _products(matrix: dict[str, list[object]]) -> Iterator[Settings]:
    """Yield, for each case, (path, index, value) of every path."""
    for chosen in product(*(list(enumerate(values)) for values in matrix.values())):
        yield tuple((path, n, value) for path, (n, value) in zip(matrix, chosen, strict=True))


def _stated(settings: Settings) -> tuple[str, ...]:
    """Return what was set for a case, as `--set` takes it."""
    return tuple(f"{key}={_written(value)}" for key, _, value in settings)


def _written(value: object) -> str:
    """Return a value as `--set` takes it."""
    try:
        plain = parse(str(value), "").data
    except InputError:
        plain = None
    return str(value) if plain == value and type(plain) is type(value) else json.dumps(value)


def _label(settings: Settings, n: int = 0, repeat: int = 1) -> str:
    words = [f"{path.rpartition('.')[2]}={value}" for path, _, value in settings]
    words += [str(n + 1)] if repeat > 1 else []
    label = "".join(c if c.isalnum() or c in "=._%-" else "-" for c in "_".join(words))
    # It is a part of the name of a folder; folders that would be the same are numbered.
    return label if len(label.encode()) <= _LABEL else label.encode()[:_LABEL].decode(errors="ignore")
