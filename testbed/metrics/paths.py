"""Samples of an MPTCP host -> its counters, and what went over each path and each interface (pure).

A path is what subflows from an address of one interface to an address of another have in common. The side that sends
has its figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from testbed.metrics.measured import Measured, latencies, percentile
from testbed.metrics.nodes import queues, since
from testbed.metrics.owners import Owners
from testbed.metrics.records import Sample, Subflow
from testbed.metrics.table import COUNTER, unit

Endings = dict[tuple[str, int, str, int], list[tuple[float, int]]]
_NEAR = 5.0  # seconds between the ends of both sides of a subflow; its ports may be used again later
Way = tuple[str, str]  # an interface of the host, and NODE:INTERFACE of its peer ("" where nobody has that address)
_SUMS = ("bytes_sent", "bytes_acked", "bytes_received", "retransmits")
_PATH = ("bytes_sent", "bytes_acked", "retransmits")
_ESTABLISHED = "ESTAB"


class _Count(Struct):
    """What the subflows of a path have counted; `delivered` is what left if all losses were in queues of the host."""

    bytes_sent: int = 0
    delivered: int = 0
    bytes_acked: int = 0
    bytes_received: int = 0
    retransmits: int = 0


class _Seen(Struct):
    """The paths of a host: counts, their values at each sample, and (time, RTT, window) when data was acknowledged."""

    counts: dict[Way, _Count]
    series: dict[Way, list[tuple[float, _Count]]]
    acks: dict[Way, list[tuple[float, float, float]]]


def endings(samples: Iterable[Sequence[Sample]]) -> Endings:
    """Return what subflows had received when they ended, and when, by both ends as the peer has them."""
    found: Endings = {}
    for row in (row for rows in samples for row in rows):
        for s in row.closed:
            found.setdefault((s.remote, s.remote_port, s.local, s.local_port), []).append((row.t, s.bytes_received))
    return found


def mptcp(
    node: str, rows: Sequence[Sample], origin: float, owners: Owners, ends: Endings | None = None
) -> dict[str, Measured]:
    """Return MPTCP counters, subflows of a connection at once, and the figures of paths and interfaces."""
    during = since(rows, origin)
    if not during or during[0].mib is None:
        return {}
    figures = {}
    times = [r.t - origin for r in during]
    for counter, first in during[0].mib.items():
        gauge = counter == "MPCurrEstab"
        values = [(t, r.mib[counter]) for t, r in zip(times, during, strict=True) if r.mib and counter in r.mib]
        series = tuple((t, float(v - (0 if gauge else first))) for t, v in values)
        value = max(v for _, v in series) if gauge else series[-1][1]
        figures[f"{node}.mptcp.{counter}"] = Measured(value, unit("mptcp", "MPCurrEstab" if gauge else COUNTER), series)
    counts = tuple((t, _most(r.subflows)) for t, r in zip(times, during, strict=True))
    figures[f"{node}.mptcp.subflows"] = Measured(
        max(c for _, c in counts), unit("mptcp", "subflows"), counts, "most of one connection at once"
    )
    seen = _seen(node, during, origin, owners, ends or {})
    dropping = _dropping(during, seen)
    figures |= {f"{node}.subflow.{name}": m for name, m in _by_interface(seen, dropping)}
    return figures | {f"{node}.path.{name}": m for name, m in _by_path(seen, dropping)}


def _most(subflows: Sequence[Subflow]) -> float:
    return float(max(Counter(s.token for s in subflows if s.state == _ESTABLISHED).values(), default=0))


def _ended(s: Subflow, t: float, ends: Endings) -> Subflow:
    """Return a subflow that has ended with at least what its peer had received by then.

    The sender's own last counters may be lost (programs/sampler/subflows.py).
    """
    got = max(
        (n for at, n in ends.get((s.local, s.local_port, s.remote, s.remote_port), ()) if abs(at - t) < _NEAR),
        default=0,
    )
    return replace(s, bytes_sent=max(s.bytes_sent, got), bytes_acked=max(s.bytes_acked, got))


def _seen(node: str, during: Sequence[Sample], origin: float, owners: Owners, ends: Endings) -> _Seen:
    seen = _Seen({}, {}, {})
    for own in owners.gained.values():
        for _, name, ifname in own:
            if name == node:
                seen.counts.setdefault((ifname, ""), _Count())
    latest: dict[tuple[object, ...], tuple[Subflow, tuple[int, int]]] = {}
    for n, row in enumerate(during):
        t, alive = row.t - origin, len(row.subflows)
        for k, s in enumerate((*row.subflows, *(_ended(c, row.t, ends) for c in row.closed))):
            key = (s.token, s.local, s.local_port, s.remote, s.remote_port)
            before, held = latest.get(key, (None, (0, 0)))
            if before is not None and s.mss < before.mss:  # an MTU that is found later is of what is still to be sent
                s = replace(s, mss=before.mss)
            if k < alive:
                stuck = _stuck(s)
            else:  # nothing of it is on the way any more, also not what was on the way before
                left = max(s.bytes_acked - 1, before.bytes_sent - held[1] if before is not None else 0)
                stuck = held[0], s.bytes_sent - left if s.mss else 0
            latest[key] = s, (max(held[0], stuck[0]), max(held[1], stuck[1]))
            if before is None and t <= 0:  # what it carried before the run
                continue
            _, ifname = owners.at(s.local, row.t, node)
            if not ifname:
                continue
            way = (ifname, ":".join(filter(None, owners.at(s.remote, row.t))))
            count = seen.counts.setdefault(way, _Count())
            for name in _SUMS:
                grown = getattr(s, name) - (getattr(before, name) if before is not None else 0)
                setattr(count, name, getattr(count, name) + grown)
            sent = s.bytes_sent - (before.bytes_sent if before is not None else 0)
            count.bytes_sent -= latest[key][1][0] - held[0]
            count.delivered += sent - (latest[key][1][1] - held[1])
            # The RTT of a subflow that sends nothing is that of its handshake, or of an earlier time.
            if s.rtt_ms and s.bytes_sent and s.bytes_acked > (before.bytes_acked if before is not None else 1):
                seen.acks.setdefault(way, []).append((t, s.rtt_ms, float(s.cwnd)))
        for way, count in seen.counts.items():
            zero = [(r.t - origin, _Count()) for r in during[:n]] if way not in seen.series else []
            seen.series.setdefault(way, zero).append((t, replace(count)))
    return seen


def _stuck(s: Subflow) -> tuple[int, int]:
    """Return how much of `bytes_sent` can't have left, and how much has not where queues of the host dropped packets.

    The kernel counts each try, also of what a queue or a route then refuses (net/ipv4/tcp_output.c:
    __tcp_transmit_skb). What is acknowledged or on the way has left once, and again what was sent again.
    """
    if not s.mss:  # a record without them
        return 0, 0
    once = max(0, s.bytes_acked - 1) + s.unacked * s.mss
    return max(0, s.bytes_sent - once - s.bytes_retrans), max(0, s.bytes_sent - once - s.dsack_dups * s.mss)


def _dropping(during: Sequence[Sample], seen: _Seen) -> set[str]:
    """Return the interfaces whose addresses may have sent what a queue of the host dropped.

    They are those that dropped packets; if any did, also those whose subflows carried more than the interface sent.
    """
    first, last = during[0], during[-1]
    began, ended = queues(first), queues(last)
    found = {dev for dev, (drops, _) in ended.items() if drops > began.get(dev, (0, 0))[0]}
    carried: Counter[str] = Counter()
    for (ifname, _), count in seen.counts.items():
        carried[ifname] += count.bytes_acked
    for ifname, acked in carried.items() if found else ():
        if ifname in first.interfaces and ifname in last.interfaces:
            sent = last.interfaces[ifname].tx_bytes - first.interfaces[ifname].tx_bytes
            found |= {ifname} if sent < acked else set()
    return found


def _values(seen: _Seen, way: Way, name: str, dropping: set[str]) -> list[tuple[float, float]]:
    field = "delivered" if name == "bytes_sent" and way[0] in dropping else name
    return [(t, float(getattr(count, field))) for t, count in seen.series[way]]


def _by_interface(seen: _Seen, dropping: set[str]) -> Iterator[tuple[str, Measured]]:
    for ifname in dict.fromkeys(ifname for ifname, _ in seen.series):
        ways = [way for way in seen.series if way[0] == ifname]
        for name in _SUMS:
            every = [_values(seen, way, name, dropping) for way in ways]
            series = tuple((points[0][0], sum(v for _, v in points)) for points in zip(*every, strict=True))
            note = "payload" if name.startswith("bytes") else ""
            yield f"{ifname}.{name}", Measured(series[-1][1], unit("subflow", name), series, note)
        if rtts := [rtt for way in ways for _, rtt, _ in seen.acks.get(way, ())]:
            yield f"{ifname}.rtt_p50_ms", Measured(percentile(rtts, 0.5), unit("subflow", "rtt_p50_ms"))


def _by_path(seen: _Seen, dropping: set[str]) -> Iterator[tuple[str, Measured]]:
    sent = {way: _values(seen, way, "bytes_sent", dropping)[-1][1] for way in seen.series}
    total = sum(sent.values())
    for way in (way for way in seen.series if way[1] and sent[way]):
        name = "/".join(way)
        for key in _PATH:
            series = tuple(_values(seen, way, key, dropping))
            yield f"{name}.{key}", Measured(series[-1][1], unit("path", key), series)
        yield f"{name}.share_pct", Measured(100 * sent[way] / total, unit("path", "share_pct"), note="of what it sent")
        acks = seen.acks.get(way, [])
        for key, measured in latencies([rtt for _, rtt, _ in acks], "rtt").items():
            series = tuple((t, rtt) for t, rtt, _ in acks) if key == "rtt_p50_ms" else ()
            yield f"{name}.{key}", Measured(measured.value, measured.unit, series)
        if acks:
            cwnd = percentile([window for *_, window in acks], 0.5)
            key = "cwnd_p50_segments"
            yield f"{name}.{key}", Measured(cwnd, unit("path", key), tuple((t, window) for t, _, window in acks))
