"""Text -> Topology or Experiment: the one door above the language, the plan and the rules."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from testbed.errors import InputError, Problem
from testbed.language import traces
from testbed.language.document import Document, Mark, Source, get, position
from testbed.language.document import Path as Where
from testbed.language.experiment import EXPERIMENT, Case, Experiment, Settings, faults, label, products, stated
from testbed.language.explain import problems
from testbed.language.files import content, root_of
from testbed.language.overlay import merge, override, placed
from testbed.language.parsing import parse
from testbed.language.sound import Built, filled, mapping, reused, sound
from testbed.language.topology import WAYS, Topology
from testbed.language.traces import Trace
from testbed.language.writing import written
from testbed.rules import warnings, whole
from testbed.rules.fault import Written

_Made = tuple[Topology, dict[str, Any], tuple[Problem, ...]]  # a case, its data and its warnings
_IDLE = 10  # cases in a row whose faults were all told before: the rest is not looked at


def load(path: str | Path, overrides: tuple[str, ...] = (), base: Path | None = None) -> Topology:
    """Read a topology, or the first case of an experiment (as `read`); InputError has every problem."""
    return read(path, overrides, base).cases[0].topology


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
    folders = {str(path): file.parent}
    document, found = _overridden(document, [o for o in overrides if o.startswith("topology=")])
    if "topology" in document.data:
        under_text, under = _under(document, file.parent, base)
        texts = {"experiment.yaml": text, "topology.yaml": under_text}
        named_by = base or file.parent / str(document.data["topology"])
        folders[str(named_by)] = named_by.parent
        document = merge(under, document)
    document, wrong = _overridden(document, [o for o in overrides if not o.startswith("topology=")])
    # A file is an experiment by these keys; they are not part of the language of a topology.
    own = {k: document.data[k] for k in EXPERIMENT if k in document.data}
    document = Document({k: v for k, v in document.data.items() if k not in own}, document.values, document.keys)
    misstated = list(faults(document, own))
    found += [*wrong, *misstated]
    matrix = {} if misstated else own.get("matrix", {})
    assert isinstance(matrix, dict)
    topologies, wrong = _built(document, matrix, only, folders)
    if found := [*found, *wrong]:
        raise InputError(*dict.fromkeys(found))
    repeat = int(str(own.get("repeat", 1)))
    cases = (
        Case(label(settings, n, repeat), stated(settings), topology, data, label(settings), n + 1, warned)
        for settings, (topology, data, warned) in topologies.items()
        for n in range(repeat)
    )
    named = file.parent / str(own["topology"]) if "topology" in own else None
    return Experiment(file, tuple(cases), int(str(own.get("seed", 0))), texts, named)


def build(document: Document, like: Built | None = None) -> Topology:
    """Return the topology that a document states, or raise InputError with every problem in it.

    What it has in common with `like` (the same objects: another case of one experiment) is not judged again.
    """
    data = filled(reused(mapping(document), like) if like is not None else mapping(document))
    found: list[Problem] = []
    kept: dict[str, list[int]] = {}
    doubt: frozenset[str] = frozenset()
    try:
        topology = Topology.model_validate(data)
    except ValidationError as e:
        data = filled(mapping(document))
        errors = e.errors(include_url=False)
        found += problems(document, Topology, errors, EXPERIMENT)
        if not isinstance(data.get("nodes"), dict):
            raise InputError(*found) from e  # without nodes nothing else can be judged
        rest, kept, doubt = sound(data, [tuple(x["loc"]) for x in errors])
        try:
            topology = Topology.model_validate(rest)
        except ValidationError:
            raise InputError(*found) from e
    nodes, workloads = (tuple(data[k]) if isinstance(data.get(k), dict) else () for k in ("nodes", "workloads"))
    before = like.topology if like is not None and not found else None
    for path, message, hint in whole.faults(topology, Written(nodes, workloads, doubt), before):
        if len(path) > 1 and path[0] in kept:
            path = (path[0], kept[str(path[0])][int(path[1])], *path[2:])
        found.append(_at(document, data, path).problem(message, hint))
    if found:
        raise InputError(*found)
    return topology


def _at(document: Document, data: dict[str, Any], path: Where) -> Mark:
    """Return what is blamed: a word itself; of a mapping or a list, and where the author chose the key, that."""
    chosen = path[-2:-1] in (("sysctl",), ("silence",))
    return document.at(path, key=chosen or not isinstance(get(data, path), str | int | float))


def _warned(document: Document, topology: Topology, like: Built | None) -> tuple[Problem, ...]:
    """Return the warnings of a topology that has no faults, without those of parts that it shares with `like`."""
    data = filled(mapping(document))
    return tuple(
        _at(document, data, path).problem(message, hint)._replace(name=name)
        for name, path, message, hint in warnings.warnings(topology, data, like)
    )


def _built(
    document: Document, matrix: dict[str, list[object]], only: tuple[str, ...] | None, folders: dict[str, Path]
) -> tuple[dict[Settings, _Made], list[Problem]]:
    """Return the topology of each case with its data, and what is wrong with any: the same is said once."""
    found: dict[Settings, _Made] = {}
    told: dict[Problem, None] = {}
    like: Built | None = None
    idle = 0
    for settings in products(matrix):
        if only is not None and stated(settings) != only:
            continue
        case, wrong = _case(document, settings)
        case, untraced = _traced(case, folders)
        wrong += untraced
        try:
            topology = build(case, like)
            found[settings] = (topology, case.data, _warned(case, topology, like))
            like = like or Built(case.data, topology)
        except InputError as e:
            wrong += e.problems
        known = len(told)
        told |= dict.fromkeys(wrong)
        idle = idle + 1 if wrong and len(told) == known else 0
        if idle == _IDLE:
            break  # a fault of the file itself is one of every case
    return found, list(told)


def _option(words: str) -> Mark:
    """Return the position of what is not in a file: problems there begin with these words."""
    return Mark(Source(words, ()), 0, 0)


def _text(path: Path, name: str, mark: Mark, root: Path | None = None) -> str:
    """Return a file's text; errors are at `mark` if there is no such file or if links lead out of `root`."""
    try:
        raw = content(path, root=root)
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as e:
        before, rows = raw[: e.start].decode(), raw.decode(errors="replace").splitlines()
        at = position(Source(name, tuple(rows)), before, len(before))
        cure = "save the file as UTF-8"
        raise InputError(at.problem(f"this is not UTF-8 text: the byte 0x{raw[e.start]:02x}", cure)) from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        why = e.strerror if isinstance(e, OSError) else str(e)
        if mark.source.rows:
            raise InputError(
                mark.problem(f"{name!r} can't be read: {why}", "a path is relative to the folder of this file")
            ) from e
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
        raise InputError(mark.problem(f"{name} is itself an experiment: name the topology that it builds on"))
    return text, under


def _overridden(document: Document, assignments: list[str]) -> tuple[Document, list[Problem]]:
    """Return the document with what `--set` says, and what is wrong with that."""
    found: list[Problem] = []
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        mark = _option(f"--set {assignment}")
        try:
            if not equals or not dotted:
                raise InputError(mark.problem("write --set path.to.key=value"))
            document = override(document, dotted, parse(text, ""), mark, mark)
        except InputError as e:
            found += [mark.problem(p.message, p.hint) for p in e.problems]
    return document, found


def _case(document: Document, settings: Settings) -> tuple[Document, list[Problem]]:
    """Return the document with one value for each path of the matrix, and what is wrong with the paths."""
    found: list[Problem] = []
    for path, n, value in settings:
        value_at, key_at = document.at(("matrix", path, n)), document.at(("matrix", path), key=True)
        try:
            document = override(document, path, Document(value), value_at, key_at)
        except InputError as e:
            found += e.problems
    return document, found


def _traced(document: Document, folders: dict[str, Path]) -> tuple[Document, list[Problem]]:
    """Return the document with the points of its traces in place of their files, and what is wrong with these.

    A path counts from the folder of the file that says it. So a case has no need of other files, wherever it runs.
    """
    found: list[Problem] = []
    links = document.data.get("links")
    for n, link in enumerate(links if isinstance(links, list) else ()):
        for way in ((), *((w,) for w in WAYS)) if isinstance(link, dict) else ():
            at: Where = ("links", n, *way, "trace")
            stated = get(document.data, at)
            if not isinstance(stated, dict) or "file" not in stated:
                continue
            mark = document.at((*at, "file"))
            try:
                points = _points(stated, mark, folders.get(mark.source.name, next(iter(folders.values()))))
            except ValidationError:
                continue  # told where the topology is built
            except InputError as e:
                found += e.problems
                points = {"points": [[0.0, None, None, None]]}
            document = Document(placed(document.data, at, points), document.values, document.keys)
    return document, found


def _points(stated: dict[str, Any], mark: Mark, folder: Path) -> dict[str, Any]:
    trace = Trace.model_validate(stated)
    name = str(trace.file)
    if trace.points is not None:
        raise InputError(mark.problem("a trace has a `file` or `points`, and not both"))
    text = _text(folder / name, name, mark, root_of(folder, name))
    try:
        return traces.read(trace, text)
    except (ValueError, csv.Error) as e:
        raise InputError(mark.problem(f"{name}: {e}")) from e


def inlined(text: str, path: Path) -> str:
    """Return the text of a file with the points of its traces in it; the text itself if it has none."""
    document = parse(text, str(path))
    whole_file, found = _traced(document, {str(path): path.parent})
    if found:
        raise InputError(*found)
    return text if whole_file is document else written(whole_file.data)
