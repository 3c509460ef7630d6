"""When the events of a run took effect: as performed, or where that is another moment, as it was seen (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from testbed.language.moments import moments, of_event
from testbed.language.topology import Event, Topology
from testbed.metrics.measured import Measured
from testbed.metrics.records import Happened, Planned, Run, Told


class Effect(Struct, frozen=True):
    """An event of the file: when it was to happen, what it is, when it was performed, when it took effect (s)."""

    at: float
    what: str
    performed: float | None
    effect: float | None


def effects(
    topology: Topology,
    planned: Planned,
    done: Sequence[Happened],
    told: Mapping[str, Sequence[Told]],
    metrics: Mapping[str, Measured],
    origin: float,
) -> Iterator[Effect]:
    """Yield every event in the order of time.

    `done` are the events of run.json, `told` what nl80211 said at each node, `origin` is t = 0 on its clock.
    """
    times: dict[int, list[float]] = {}
    for row in done:
        times.setdefault(row.n, []).append(row.t)
    heard = [(node, row.t - origin, row) for node, rows in told.items() for row in rows]
    found: list[Effect] = []
    of, last = of_event(topology), _last(topology, planned)
    for n, (event, steps) in enumerate(zip(topology.events, planned.events, strict=True)):
        for part in [event] if event.ramp is not None or len(of[n]) == 1 else [m.event for m in of[n]]:
            own = [k for k in steps if part is event or planned.steps.get(k) == part.at]
            # What changes nothing, such as a rate that the link has already, has no steps.
            performed = max((t for k in own for t in times.get(k, ())), default=None if own else part.at)
            seen = performed
            if performed is not None and (part.mlo_link is not None or part.rejoin):
                seen = min(_seen(part, heard, metrics, performed, (part.node, part.at) in last), default=None)
            found.append(Effect(part.at, describe(part), performed, seen))
    yield from sorted(found, key=lambda e: e.at)


def missed(events: Sequence[Effect], run: Run) -> Iterator[str]:
    """Yield what was to happen in a run that came to its end, and did not."""
    for event in events:
        if event.performed is None and run.monotonic and event.at <= run.seconds and not run.failures:
            yield f"the event at {event.at:g} s ({event.what}) was not performed"


def _last(topology: Topology, planned: Planned) -> set[tuple[str | None, float]]:
    """Return (node, time) of each removal of the last link that an access point has."""
    found: set[tuple[str | None, float]] = set()
    gone: dict[str | None, set[int]] = {}
    for event in (m.event for m in moments(topology)):
        if event.mlo_link is None or event.remove is None:
            continue
        away = gone.setdefault(event.node, set())
        (away.add if event.remove else away.discard)(event.mlo_link)
        every = {n for links in planned.wlans.get(event.node or "", {}).values() for n in links.values()}
        found |= {(event.node, event.at)} if event.remove and every <= away else set()
    return found


def _seen(
    event: Event, heard: Sequence[tuple[str, float, Told]], metrics: Mapping[str, Measured], after: float, last: bool
) -> Iterator[float]:
    """Yield when something was seen that the event of a radio leads to.

    With its `last` link a station loses the association (net/mac80211/mlme.c: ieee80211_ml_reconf_work).
    """
    if event.remove is False:
        active = (f"{event.node}.", f".link{event.mlo_link}.active")
        for name, metric in metrics.items():
            if name.startswith(active[0]) and name.endswith(active[1]):
                yield from (t for t, on in metric.series if t >= after and on)
        return
    wanted = "connect" if event.rejoin else "links_removed" if event.remove else "channel_switch"
    for node, t, row in heard:
        if last and row.event == "disconnect" and t >= event.at:
            yield t
        if row.event != wanted or row.status or t < event.at or (event.rejoin and node != event.node):
            continue
        if event.rejoin or event.mlo_link in row.links or not row.links:
            yield t


def describe(event: Event) -> str:
    """Return an event in a few words."""
    where = event.node or f"link {event.link}"
    if event.down is not None:
        return f"{where}: {'down' if event.down else 'up again'}"
    if event.set is not None:
        return f"{where}: {', '.join(f'{k} changes' for k in sorted(event.set.model_fields_set))}"
    if event.mlo_link is not None:
        what = f"goes to {event.freq} MHz" if event.freq is not None else "is removed" if event.remove else "returns"
        return f"{where}: mlo_link {event.mlo_link} {what}"
    if event.rejoin:
        return f"{where}: joins again"
    if event.restart is not None:
        return f"{where}: {event.restart} restarts"
    if event.address is not None:
        old, new = event.address.remove, event.address.add
        return f"{where}: {event.address.interface} {' -> '.join(filter(None, (old, new)))}"
    if event.endpoint is not None:
        what = event.endpoint.address or event.endpoint.interface or f"id {event.endpoint.id}"
        return f"{where}: endpoint {what} {event.action}"
    if event.action == "flush":
        return f"{where}: endpoints flush"
    if event.mptcp is not None:
        [(command, act)] = event.mptcp.stated()
        return f"{where}: {' '.join(filter(None, (command, act.interface)))}"
    if event.sysctl is not None:
        return f"{where}: {', '.join(f'{k}={v}' for k, v in event.sysctl.items())}"
    return f"{where}: {' '.join(event.command or ())}"
