"""Plan -> running lab: probe, launch a sandbox, let its holder perform the steps; and change a lab in place."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from testbed.drivers.nl80211 import CountrySet
from testbed.errors import InputError, LabError, Unsupported
from testbed.features import Feature
from testbed.lab import asking, control, ending, reach, sandbox, travel
from testbed.lab.changes import Change, compare
from testbed.lab.control import RunningLab
from testbed.lab.drift import Drift, drift
from testbed.lab.holder import serve
from testbed.language.topology import NAME, Topology
from testbed.linux import cgroups
from testbed.machines import country
from testbed.machines.probe import here
from testbed.plan.lab import Plan
from testbed.plan.lab import plan as make_plan
from testbed.steps import LAB, Configure, Step


def up(
    what: Plan | Topology,
    name: str | None = None,
    *,
    say: control.Say | None = None,
    folder: Path | None = None,
    requires: Sequence[Feature] = (),
    about: Mapping[str, Any] | None = None,
) -> RunningLab:
    """Bring a lab up and return when every Wait holds; it lives until `down`, or until this process ends.

    Raise Unsupported before anything is created when a feature is missing, LabError when Linux refuses a step:
    then nothing is left. `lab.keep()` lets the lab outlive this process.
    """
    plan = what if isinstance(what, Plan) else make_plan(what)
    needed = (*plan.requires(), *requires)
    here.require(f for f in needed if not f.refused)
    name = name or plan.name
    permitted_name(name)
    tell = {"topology": plan.topology.name, "interfaces": where(plan), **(about or {})}
    body = serve(name, plan.hosts, plan.steps, tell, str(folder or ""))

    def begun(owner: socket.socket, life: FileIO) -> RunningLab:
        lab = control.own(name, owner, life)
        try:
            lab.await_up(say)
        except LabError as e:
            # Probing costs as much as ten nodes, so the rest is probed only when the kernel refused something.
            _explain(needed, e)
            raise
        return lab

    borrowed = _borrowed(plan)
    keep = borrowed or ()
    groups = cgroups.find() if plan.bounds() else None

    stations = any(bss.stations for bss in plan.network.air)

    def after(orderly: bool) -> None:
        if borrowed is not None:
            country.give_back(*borrowed, orderly or not stations)
        if groups is not None:
            cgroups.sweep(groups, patience=5.0)

    try:
        return sandbox.launch(name, body, begun, after=after if keep or groups else None, keep=keep)
    finally:
        for fd in keep:
            os.close(fd)


def _borrowed(plan: Plan) -> tuple[int, int] | None:
    """Keep in mind the machine's regulatory domain if the lab sets one; none where only the kernel could tell it."""
    if any(isinstance(s, Configure) and isinstance(s.request, CountrySet) for s in plan.steps):
        with suppress(OSError, LabError):  # the lab's own request will say what is wrong
            return country.borrow()
    return None


def permitted_name(name: str) -> None:
    """Raise InputError for an invalid name of a lab, before a guest is booted for it."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"--name: {name!r}: a lab's name has lower-case letters, digits and -, and begins with a letter"
        )


def _explain(needed: Sequence[Feature], error: LabError) -> None:
    """Raise Unsupported in place of a refused step when this machine lacks a feature that was needed."""
    try:
        here.require(needed, fresh=True)
    except Unsupported as e:
        raise e from error


def where(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    """Return (interface, addresses) of every node, for people."""
    return {n: [(i.name, " ".join(i.addresses)) for i in found] for n, found in plan.network.interfaces.items()}


def drifted(lab: RunningLab, done: Sequence[Step] | None = None) -> Drift:
    """Return what of a lab is not as its steps made it, by what the kernel says of each node."""
    from testbed.lab import look  # pyroute2 is imported by nothing that brings a lab up

    steps = lab.ask(asking.Plan(), patience=ending.PATIENCE) if done is None else done
    nodes = dict.fromkeys(s.node for s in steps if isinstance(s, Configure) and s.node != LAB)
    return drift(steps, {n: look.interfaces(lab.ask(asking.Look(n), patience=reach.ANSWERS)) for n in nodes})


def mended(done: Sequence[Step], wanted: Sequence[Step], found: Drift) -> Change:
    """Return what turns a lab that has drifted into one of a plan."""
    lost = set(found.lost)
    whole = compare([s for s in done if s not in lost], wanted)
    return replace(whole, added=(*found.mend, *whole.added), perform=(*found.mend, *whole.perform))


def permitted(name: str, found: Change) -> None:
    """Raise LabError, naming the steps, when a change needs a new lab."""
    if found.refused:
        rows = "".join(f"\n    {s}" for s in found.refused)
        cure = "`--recreate` takes it down and brings it up again"
        raise LabError(f"lab {name}: this can't be undone in a running lab; {cure}:{rows}")


def change(lab: RunningLab, plan: Plan, found: Change, say: control.Say | None = None) -> None:
    """Apply a change in place; LabError when it needs a new lab (then nothing was changed)."""
    permitted(lab.name, found)
    here.require(plan.requires())
    tell = {"topology": plan.topology.name, "interfaces": where(plan)}
    lab.ask(asking.Change(travel.encode(found.perform), travel.encode(plan.steps), tell, plan.hosts), say=say)
