"""One invocation of `run`: its folder of results, and in that of several runs the folder of each."""

from __future__ import annotations

import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from testbed import results
from testbed.language.experiment import Experiment
from testbed.machines.probe import here
from testbed.report.together import Row
from testbed.results import Folder


class Invocation(Struct):
    """What is run, and the folder of its results, which is made for the first run that begins.

    That of a single run is the run's own folder; of several it has the inputs, what they come to, and their folders.
    `about` is what the manifest of each says of the invocation, `whole` the manifest of several.
    """

    experiment: Experiment
    root: Path
    overrides: tuple[str, ...]
    about: dict[str, Any]
    folder: Folder | None = None
    whole: dict[str, Any] | None = None


def invoked(experiment: Experiment, root: Path, overrides: tuple[str, ...]) -> Invocation:
    """Return an invocation that has no folder yet."""
    inputs = {name: sha256(text.encode()).hexdigest() for name, text in experiment.texts.items()}
    about = {"git": here.commit(experiment.path.parent), "arguments": sys.argv[1:], "inputs": inputs}
    return Invocation(experiment, root.resolve(), overrides, about)


def places(experiment: Experiment) -> tuple[str, ...]:
    """Return where the folder of each case is, in that of all: no two have the same."""
    taken: dict[str, tuple[str, ...]] = {}
    found = []
    for case in experiment.cases:
        base = case.name or case.topology.name
        names = (f"{base}.{n}" if n else base for n in range(len(experiment.cases)))
        name = next(name for name in names if taken.setdefault(name, case.settings) == case.settings)
        found.append(f"runs/{name}/{case.number}")
    return tuple(found)


def begin(invocation: Invocation, number: int) -> Folder:
    """Make the folder of a case."""
    experiment = invocation.experiment
    name = experiment.cases[0].topology.name
    if len(experiment.cases) == 1:
        invocation.folder = results.create(invocation.root, name)
        return invocation.folder
    where = places(experiment)
    if invocation.folder is None:
        pairs = zip(where, experiment.cases, strict=True)
        rows = [Row(place, case.label, list(case.settings)) for place, case in pairs]
        more = {"began": time.time(), "name": name, "runs": to_builtins(rows)}
        invocation.whole = results.manifest(invocation.overrides, (), experiment.seed, **invocation.about, **more)
        made = results.create(invocation.root, name)
        results.fill(made, experiment.texts, invocation.whole)
        invocation.folder = made
    return results.below(invocation.folder, where[number])
