"""A results folder of before format 1 is brought to it: what that has and the folder lacks is planned again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, to_builtins
from msgspec.json import encode
from msgspec.structs import replace

from testbed import results
from testbed.errors import InputError, Problem
from testbed.language.experiment import Case
from testbed.loading import read
from testbed.metrics.recorded import MIB, Real, Recorded, Seconds
from testbed.metrics.records import Happened, Manifest
from testbed.plan.assemble import network
from testbed.plan.events import event_steps
from testbed.plan.lab import plan
from testbed.report.report import LOST, longest_run, no_results
from testbed.results import Folder
from testbed.runs import written

_TIMED = re.compile(r"  @(\d{1,9}(?:\.\d{1,9})?)s(?: within [\d.]{1,20}s)?$")
_ID = re.compile(r"(?<=ip mptcp endpoint )(.*) id \d{1,3}\b")
_Text = Annotated[str, Meta(max_length=100_000)]
_Some = Meta(max_length=10_000)


class _Manifest(Manifest, frozen=True, kw_only=True):
    overrides: Annotated[list[_Text], _Some]
    settings: Annotated[list[_Text], _Some]


class _Happened(Struct, frozen=True, gc=False):
    t: Real
    step: _Text


class _Run(Struct, frozen=True, omit_defaults=True):
    monotonic: Seconds
    seconds: Seconds
    time: Seconds = 0.0
    stalls: Annotated[list[tuple[Real, Seconds]], Meta(max_length=100_000)] = []
    events: Annotated[list[_Happened], Meta(max_length=1_000_000)] = []
    failures: Annotated[list[_Text], _Some] = []


def bring(path: Path, into: Path) -> None:
    """Write what brings a results folder of before format 1 to it into another folder: its own files stay as they are.

    InputError when it does not say what it is about. Its timed steps have no numbers but their texts: those that are
    one text are one step here.
    """
    folder = Recorded(path)
    manifest, case = _circumstances(folder)
    topology = case.topology
    run = folder.value("run.json", _Run, longest_run(topology), "")
    texts: dict[str, int] = {}
    for row in run.events if run is not None else ():
        texts.setdefault(row.step, len(texts))
    times = {n: float(at[1]) for text, n in texts.items() if (at := _TIMED.search(text)) is not None}
    events: list[list[int]] = [[] for _ in topology.events]
    if topology.events:  # a plan may take a while
        made = plan(topology)
        known = {_ID.sub(r"\1", text): n for text, n in texts.items()}  # IDs of endpoints were others
        steps = ([_ID.sub(r"\1", str(s)) for s in event_steps(made, n)] for n in range(len(events)))
        events = [[known[text] for text in own if text in known] for own in steps]
    planned = written.planned(topology, network(topology), times, events)
    results.put(into / "effective.yaml", written.resolved(case, 0).encode())
    results.put(into / "plan.json", written.json(planned).encode())
    results.write(Folder(into), "manifest.json", {**to_builtins(manifest), "format": results.FORMAT})
    if run is not None:
        rows = bytearray()  # there may be a million
        for row in run.events:
            rows += b"," if rows else b""
            rows += encode(Happened(row.t, texts[row.step], row.step))
        rest = encode(replace(run, events=[]))
        results.put(into / "run.json", rest[:-1] + b',"events":[' + rows + b"]}")


def _circumstances(folder: Recorded) -> tuple[_Manifest, Case]:
    """Return the manifest of a folder, and the case of its experiment that it is about."""
    manifest = folder.value("manifest.json", _Manifest, 4 * MIB, LOST)
    base, experiment = folder.path / "topology.yaml", folder.path / "experiment.yaml"
    given = [folder.data(file.name, 16 * MIB, LOST) is not None for file in (base, experiment)]
    if manifest is None or folder.broken or not given[0]:
        why = folder.broken[0] if folder.broken else no_results("manifest.json" if manifest is None else base.name)
        raise InputError(Problem(why, str(folder.path)))
    overrides, settings = tuple(manifest.overrides), tuple(manifest.settings)
    # Whatever says `topology:` in it, it is the folder's own copy, and no other file.
    found = read(experiment if given[1] else base, overrides, base, settings)
    for case in found.cases:
        if case.settings == settings:
            return manifest, case
    why = f"manifest.json: no case of the experiment has the settings {', '.join(settings) or 'none'}: {LOST}"
    raise InputError(Problem(why, str(folder.path)))
