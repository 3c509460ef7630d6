"""Plan -> running lab: probe, launch a sandbox, let its holder perform the steps; and change a lab in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed import control, sandbox
from testbed.control import RunningLab
from testbed.drivers.link import MTU, AddressAdd, LinkSet
from testbed.drivers.mptcp import EndpointAdd
from testbed.drivers.route import RouteAdd, RuleAdd
from testbed.drivers.tc import Qdisc, QdiscDel
from testbed.errors import LabError, Unsupported
from testbed.features import Feature
from testbed.holder import serve
from testbed.machines import here
from testbed.plan import Plan
from testbed.plan import plan as make_plan
from testbed.steps import Configure, Delete, Run, Step, Wait
from testbed.topology import Topology


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
    then nothing is left. `lab.ask("keep")` lets the lab outlive this process.
    """
    plan = what if isinstance(what, Plan) else make_plan(what)
    needed = (*plan.requires(), *requires)
    here.require(f for f in needed if not f.refused)
    name = name or plan.name
    tell = {"topology": plan.topology.name, "interfaces": where(plan), **(about or {})}
    body = serve(name, plan.hosts, plan.steps, tell, str(folder or ""))
    lab = RunningLab(name, sandbox.launch(name, body))
    try:
        lab.await_answer(say)
    except LabError as e:
        lab.connection.close()  # the sandbox dies with its owner's connection
        # Probing costs as much as ten nodes, so the rest is probed only when the kernel refused something.
        _explain(needed, e)
        raise
    except BaseException:
        lab.connection.close()
        raise
    return lab


def _explain(needed: Sequence[Feature], error: LabError) -> None:
    """Raise Unsupported in place of a refused step when this machine lacks a feature that was needed."""
    try:
        here.require(needed)
    except Unsupported as e:
        raise e from error


def where(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    """Return (interface, addresses) of every node, for people."""
    return {n: [(i.name, " ".join(i.addresses)) for i in found] for n, found in plan.network.interfaces.items()}


@dataclass(frozen=True, slots=True)
class Change:
    """How a running lab differs from a plan: steps that no longer hold, steps to perform, what can't be done."""

    removed: tuple[Step, ...]
    added: tuple[Step, ...]
    perform: tuple[Step, ...]
    refused: tuple[Step, ...]

    def __str__(self) -> str:
        return "".join([*(f"- {s}\n" for s in self.removed), *(f"+ {s}\n" for s in self.added)])


def compare(done: Sequence[Step], wanted: Sequence[Step]) -> Change:
    """Return what turns a lab made by `done` into one made by `wanted` (pure).

    In place go link parameters, addresses, routes, rules, endpoints, limits and sysctls that get another value,
    and new nodes and links; what would have to be unmade (nodes, links, bridges) is refused.
    """
    before, after = dict.fromkeys(_lasting(done)), dict.fromkeys(_lasting(wanted))
    removed = [s for s in before if s not in after]
    added = [s for s in after if s not in before]
    overwritten = {k for s in added if (k := _key(s))}
    undo: list[Step] = []
    refused: list[Step] = []
    for step in reversed(removed):
        if _key(step) in overwritten:
            continue
        inverse = _inverse(step)
        if inverse is None:
            refused.append(step)
        else:
            undo.append(inverse)
    waits = [s for s in wanted if isinstance(s, Wait)]
    return Change(tuple(removed), tuple(added), (*undo, *_healed(after, removed, added), *waits), tuple(refused))


def _lasting(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that leave a state: a Wait leaves none and is simply asked again."""
    return [s for s in steps if not isinstance(s, Wait)]


def _key(step: Step) -> tuple[object, ...] | None:
    if isinstance(step, Configure) and (key := getattr(step.request, "key", None)) is not None:
        return (step.node, type(step.request).__name__, *key())
    return None


def _inverse(step: Step) -> Step | None:
    if isinstance(step, Run):
        return None
    match step:
        case Configure(node, AddressAdd() | RouteAdd() | RuleAdd() | EndpointAdd() as request):
            return Configure(node, Delete(request))
        case Configure(node, LinkSet(name=name, mtu=int())):
            return Configure(node, LinkSet(name, mtu=MTU))
        case Configure(node, Qdisc() as request):
            return Configure(node, QdiscDel(request))
    return None


def _healed(after: Mapping[Step, None], removed: Sequence[Step], added: Sequence[Step]) -> list[Step]:
    """Return the added steps in order, and the routes that the kernel drops together with a removed address."""
    new = set(added)
    touched = {
        (s.node, s.request.dev) for s in removed if isinstance(s, Configure) and isinstance(s.request, AddressAdd)
    }
    return [
        s
        for s in after
        if s in new
        or (isinstance(s, Configure) and isinstance(s.request, RouteAdd) and (s.node, s.request.dev) in touched)
    ]


def change(lab: RunningLab, plan: Plan, found: Change, say: control.Say | None = None) -> None:
    """Apply a change in place; LabError when it needs a new lab (then nothing was changed)."""
    if found.refused:
        rows = "".join(f"\n    {s}" for s in found.refused)
        raise LabError(f"lab {lab.name}: this can't be undone in a running lab; `--recreate` makes it anew:{rows}")
    here.require(plan.requires())
    tell = {"topology": plan.topology.name, "interfaces": where(plan)}
    lab.ask("change", found.perform, plan.steps, tell, plan.hosts, say=say)
