"""When the events of a run took effect: as performed, or where that is another moment, as it was seen (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from testbed.language.topology import Event, Topology
from testbed.metrics.measured import Measured
from testbed.metrics.records import Happened, Planned, Told


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
    for event, steps in sorted(zip(topology.events, planned.events, strict=True), key=lambda e: e[0].at):
        performed = max((t for n in steps for t in times.get(n, ())), default=None)
        seen = performed
        if performed is not None and (event.mlo_link is not None or event.rejoin):
            seen = min(_seen(event, heard, metrics, performed), default=None)
        yield Effect(event.at, describe(event), performed, seen)


def _seen(
    event: Event, heard: Sequence[tuple[str, float, Told]], metrics: Mapping[str, Measured], after: float
) -> Iterator[float]:
    """Yield when something was seen that the event of a radio leads to."""
    if event.remove is False:
        active = (f"{event.node}.", f".link{event.mlo_link}.active")
        for name, metric in metrics.items():
            if name.startswith(active[0]) and name.endswith(active[1]):
                yield from (t for t, on in metric.series if t >= after and on)
        return
    wanted = "connect" if event.rejoin else "links_removed" if event.remove else "channel_switch"
    for node, t, row in heard:
        if row.event != wanted or t < event.at or (event.rejoin and node != event.node):
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
        return f"{where}: endpoint {event.endpoint.address or event.endpoint.interface} {event.action}"
    if event.sysctl is not None:
        return f"{where}: {', '.join(f'{k}={v}' for k, v in event.sysctl.items())}"
    return f"{where}: {' '.join(event.command or ())}"
