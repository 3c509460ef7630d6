"""When each event of a file happens: repeated, undone and gradual ones as single moments (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Set
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import count, pairwise

from msgspec import Struct

from testbed.drivers.tc import Shape
from testbed.language.topology import WAYS, Direction, Event, Link, Shaping, Topology, Way

MOST = 10_000  # moments of one event
SHORTEST = 0.001  # s between two times of one event
STEP = 0.02  # s between the values of a ramp
FAST = 0.1  # s: a rate that changes at least this often is a class of htb, whose bucket no change refills
GRADUAL = ("rate", "delay", "jitter", "loss", "duplicate", "corrupt", "reorder")


class Moment(Struct, frozen=True):
    """What happens at a time: `n` is the number of the event of the file, `event` what it then does by itself.

    Of one that changes a link, `old` and `new` are what the link is before and after.
    """

    n: int
    event: Event
    old: Link | None = None
    new: Link | None = None


class _Due(Struct, frozen=True, order=True):
    """Something to happen: those that end before those that begin, then in the order of the file."""

    at: float
    begins: bool
    order: int
    n: int
    event: Event
    undo: Link | None = None  # what the link of a `set` was before


@lru_cache(maxsize=1)
def moments(topology: Topology) -> tuple[Moment, ...]:
    """Return everything that happens, in the order of time.

    What earlier events of a link set stays: an event changes what it names and nothing else.
    """
    end, order = run_ends(topology), count()
    queue = [_Due(at, True, next(order), n, e) for n, e in enumerate(topology.events) for at in times(e, end)]
    heapify(queue)
    now: dict[int, Link] = {}
    found: list[Moment] = []
    while queue:
        due = heappop(queue)
        event = due.event if due.event.at == due.at else due.event.model_copy(update={"at": due.at})
        n = link_index(topology, event.link) if event.link is not None else None
        old = now.get(n, topology.links[n]) if n is not None and event.set is not None else None
        if event.for_ is not None and due.begins and (until := round(due.at + event.for_, 9)) <= end:
            heappush(queue, _Due(until, False, next(order), due.n, _undone(event), old))
        if n is None or old is None or event.set is None:
            found.append(Moment(due.n, event))
            continue
        if event.ramp is not None and due.begins:
            for at, part in _ramp(old, event):
                heappush(queue, _Due(at, True, next(order), due.n, part))
            continue
        now[n] = _laid(old, event.set) if due.undo is None else _restored(old, event.set, due.undo)
        found.append(Moment(due.n, event, old, now[n]))
    return tuple(found)


def times(event: Event, end: float) -> Iterator[float]:
    """Yield when an event begins: once, or every so often as many times as it says, else until the run ends."""
    yield event.at
    if event.every:
        most = MOST if event.times is None else min(event.times, MOST)
        last = (round(event.at + k * event.every, 9) for k in range(1, most))
        yield from (at for at in last if event.times is not None or at < end)


@lru_cache(maxsize=1)
def of_event(topology: Topology) -> dict[int, list[Moment]]:
    """Return the moments of each event by its number."""
    found: dict[int, list[Moment]] = {n: [] for n in range(len(topology.events))}
    for moment in moments(topology):
        found[moment.n].append(moment)
    return found


@lru_cache(maxsize=1)
def driven(topology: Topology) -> frozenset[tuple[int, Way]]:
    """Return the directions of links (by number) whose rate follows a trace, or events that are 100 ms apart."""
    changes: dict[tuple[int, Way], list[float]] = {}
    traces = ((n, way, link.followed(way)) for n, link in enumerate(topology.links) for way in WAYS)
    by_trace = {(n, way) for n, way, trace in traces if trace is not None and "rate" in trace.states()}
    for m in moments(topology) if topology.events else ():
        n = link_index(topology, m.event.link) if m.event.link is not None else None
        if n is None or m.old is None or m.new is None:
            continue
        for way in WAYS:
            old, new = m.old.shape(way).rate, m.new.shape(way).rate
            if old != new and new is not None:
                changes.setdefault((n, way), []).append(m.event.at)
    fast = {way for way, found in changes.items() if any(b - a <= FAST + 1e-9 for a, b in pairwise(found))}
    return frozenset(by_trace | fast)


def run_ends(topology: Topology) -> float:
    """Return when a run is over as far as sound workloads and `duration` say, 0 without any."""
    sound = [w.workload() for w in topology.workloads.values() if w.kind()]
    return max([*(w.at + w.seconds_long() for w in sound), topology.duration or 0.0])


def link_index(topology: Topology, name: str) -> int | None:
    """Return the number of the link with a name, or with an end `node:interface`."""
    return _numbers(topology).get(name)


@lru_cache(maxsize=1)
def _numbers(topology: Topology) -> dict[str, int]:
    found: dict[str, int] = {}
    for n, link in enumerate(topology.links):
        for name in filter(None, (link.name, *link.ends)):
            found.setdefault(name, n)
    return found


def _undone(event: Event) -> Event:
    """Return the opposite of an event that lasts for a while; of `set`, what it restores is known from its begin."""
    if event.down is not None:
        return event.model_copy(update={"down": not event.down})
    return event.model_copy(update={"remove": not event.remove}) if event.remove is not None else event


def _laid(link: Link, over: Shaping) -> Link:
    """Return a link with the values that an event states, null for none, for each direction what it says of it.

    A value for both directions overrides what one direction said before.
    """
    stated = over.model_fields_set
    update: dict[str, object] = {key: getattr(over, key) for key in stated if key not in WAYS}
    for way in WAYS:
        own, new = getattr(link, way), getattr(over, way)
        if way in stated and new is None:
            update[way] = None
        elif own is not None or new is not None:
            update[way] = _direction(_direction(own, None, stated), new, new.model_fields_set if new else set())
    return link.model_copy(update=update)


def _restored(link: Link, over: Shaping, before: Link) -> Link:
    """Return a link with what an event has set as it was before that."""
    stated = over.model_fields_set
    update: dict[str, object] = {key: getattr(before, key) for key in stated if key not in WAYS}
    for way in WAYS:
        now, new, old = getattr(link, way), getattr(over, way), getattr(before, way)
        if way in stated and new is None:
            update[way] = old
        elif now is not None or old is not None:
            update[way] = _direction(now, old, stated | (new.model_fields_set if new is not None else set()))
    return link.model_copy(update=update)


def _direction(base: Direction | None, other: Direction | None, keys: Set[str]) -> Direction:
    """Return what one says of a direction, but of these keys what the other says, or nothing."""
    found = {k: getattr(base, k) for k in base.model_fields_set - keys} if base is not None else {}
    found |= {k: getattr(other, k) for k in other.model_fields_set & keys} if other is not None else {}
    return Direction().model_copy(update=found)


def _ramp(link: Link, event: Event) -> Iterator[tuple[float, Event]]:
    """Yield the steps of a gradual change, the last of which is the change itself."""
    assert event.ramp is not None
    assert event.set is not None
    whole = event.model_copy(update={"ramp": None, "for_": None, "every": None, "times": None})
    target = _laid(link, event.set)
    steps = max(1, min(round(event.ramp / STEP), MOST))
    for step in range(1, steps):
        ways: dict[str, Direction] = {way: _between(link.shape(way), target.shape(way), step / steps) for way in WAYS}
        part = Shaping().model_copy(update=ways)
        at = round(event.at + event.ramp * step / steps, 9)
        yield at, whole.model_copy(update={"at": at, "set": part})
    at = round(event.at + event.ramp, 9)
    yield at, whole.model_copy(update={"at": at})


def _between(old: Shape, new: Shape, share: float) -> Direction:
    """Return the values between two shapes of a direction, of those that differ."""
    found: dict[str, object] = {}
    for key in GRADUAL:
        first, last = getattr(old, key) or 0, getattr(new, key)
        if first != last and isinstance(last, int | float) and isinstance(first, int | float):
            value = first + (last - first) * share
            found[key] = max(8, round(value)) if key == "rate" else value
    return Direction().model_copy(update=found)
