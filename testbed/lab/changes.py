"""The steps that turn a running lab into that of another plan, and the performed steps still in effect (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from msgspec import Struct

from testbed.drivers.link import MTU, AddressAdd, LinkSet
from testbed.drivers.mptcp import EndpointAdd
from testbed.drivers.route import RouteAdd, RuleAdd, Unreachable
from testbed.drivers.tc import QdiscDel, Shaper, reshaped
from testbed.steps import Configure, Delete, Request, Run, Step, Wait


class Change(Struct, frozen=True):
    """The differences of a running lab from a plan: steps to undo, steps to perform, and impossible changes."""

    removed: tuple[Step, ...]
    added: tuple[Step, ...]
    perform: tuple[Step, ...]
    refused: tuple[Step, ...]

    def __str__(self) -> str:
        return "".join([*(f"- {s}\n" for s in self.removed), *(f"+ {s}\n" for s in self.added)])


def compare(done: Sequence[Step], wanted: Sequence[Step]) -> Change:
    """Return the changes that turn a lab made by `done` into one made by `wanted`.

    Link parameters, addresses, routes, rules, endpoints, limits and sysctls can change in place, and nodes and links
    can be added. Removing nodes, links or bridges is refused.
    """
    before, after = dict.fromkeys(_lasting(done)), dict.fromkeys(_lasting(wanted))
    removed = [s for s in before if s not in after]
    added = [s for s in after if s not in before]
    overwritten = {k for s in added if (k := _key(s))}
    undo: list[Step] = []
    refused: list[Step] = []
    for step in reversed([s for s in removed if not _shapes(s)]):
        if _key(step) in overwritten:
            continue
        inverse = _inverse(step)
        if inverse is None:
            refused.append(step)
        else:
            undo.append(inverse)
    waits = [s for s in wanted if isinstance(s, Wait)]
    others = _healed(after, removed, [s for s in added if not _shapes(s)])
    perform = (*undo, *others, *_reshaped(before, after), *waits)
    return Change(tuple(removed), tuple(added), perform, tuple(refused))


def _shapes(step: Step) -> bool:
    return isinstance(step, Configure) and isinstance(step.request, Shaper)


def _reshaped(before: Iterable[Step], after: Iterable[Step]) -> Iterator[Step]:
    """Yield what changes the shaping of each interface: its qdiscs are a chain, in which each rests on another."""
    old, new = _chains(before), _chains(after)
    for node, dev in {**old, **new}:
        for request in reshaped(old.get((node, dev), ()), new.get((node, dev), ())):
            yield Configure(node, request)


def _chains(steps: Iterable[Step]) -> dict[tuple[str, str], list[Shaper]]:
    found: dict[tuple[str, str], list[Shaper]] = {}
    for step in steps:
        if isinstance(step, Configure) and isinstance(step.request, Shaper):
            found.setdefault((step.node, step.request.dev), []).append(step.request)
    return found


def _lasting(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that leave a state behind; a Wait does not, and can be performed again."""
    return [s for s in steps if not isinstance(s, Wait)]


def _key(step: Step) -> tuple[object, ...] | None:
    if isinstance(step, Configure) and (key := getattr(step.request, "key", None)) is not None:
        return (step.node, type(step.request).__name__, *key())
    return None


def _inverse(step: Step) -> Step | None:
    if isinstance(step, Run):
        return None
    match step:
        case Configure(node, AddressAdd() | RouteAdd() | RuleAdd() | Unreachable() | EndpointAdd() as request):
            return Configure(node, Delete(request))
        case Configure(node, LinkSet(name=name, mtu=int())):
            return Configure(node, LinkSet(name, mtu=MTU))
    return None


def _healed(after: Mapping[Step, None], removed: Sequence[Step], added: Sequence[Step]) -> list[Step]:
    """Return the added steps in order, and the routes that the kernel removes together with an address."""
    new = set(added)
    touched = {
        (s.node, s.request.dev) for s in removed if isinstance(s, Configure) and isinstance(s.request, AddressAdd)
    }
    return [
        s
        for s in after
        if s in new
        or (
            isinstance(s, Configure)
            and isinstance(s.request, RouteAdd)
            and any((s.node, hop.dev) in touched for hop in s.request.hops())
        )
    ]


def standing(performed: Iterable[Step]) -> list[Step]:
    """Return the performed steps that are still in effect: no later step overwrote or removed them."""
    steps: dict[Step, None] = {}
    owners: dict[tuple[object, ...], Step] = {}
    for step in performed:
        if isinstance(step, Configure) and isinstance(step.request, Delete | QdiscDel):
            steps.pop(Configure(step.node, cast(Request, step.request.added)), None)
            continue
        if (key := _key(step)) is not None:
            if key in owners:
                steps.pop(owners[key], None)
            owners[key] = step
        steps[step] = None
    return list(steps)
