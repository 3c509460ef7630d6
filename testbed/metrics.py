"""Samples and captures -> metrics of nodes and of the machine (pure, from what the raw files hold)."""

from __future__ import annotations

import re
from itertools import pairwise
from math import fsum
from typing import Any

from testbed.addressing import Network
from testbed.workloads.place import Measured, percentile

Rows = list[dict[str, Any]]
_CAPTURED = re.compile(r"Packets received/dropped on interface '(?P<dev>[^']+)': (?P<got>\d+)/(?P<lost>\d+)")
_RATES = (("rx_bytes", "rx_mbps"), ("tx_bytes", "tx_mbps"))


def interfaces(node: str, rows: Rows, origin: float) -> dict[str, Measured]:
    """Return counters since t = 0 of every interface, and the rates between samples."""
    found: dict[str, Measured] = {}
    during = since(rows, origin)
    if not during:
        return found
    for ifname, first in during[0]["interfaces"].items():
        seen = [(r["t"] - origin, r["interfaces"][ifname]) for r in during if ifname in r["interfaces"]]
        for counter in first:
            series = tuple((t, float(c[counter] - first[counter])) for t, c in seen)
            unit = "byte" if counter.endswith("_bytes") else "packet"
            found[f"{node}.{ifname}.{counter}"] = Measured(series[-1][1], unit, series)
        for counter, rate in _RATES:
            total = found[f"{node}.{ifname}.{counter}"].series
            pace = tuple((b[0], (b[1] - a[1]) * 8e-6 / (b[0] - a[0])) for a, b in pairwise(total) if b[0] > a[0])
            if pace:
                found[f"{node}.{ifname}.{rate}"] = Measured(
                    max(v for _, v in pace), "Mbit/s", pace, "the highest between two samples"
                )
        for field in ("drops", "overlimits"):
            sums = [(r["t"] - origin, float(sum(q[field] for q in r["qdiscs"] if q["dev"] == ifname))) for r in during]
            if any(q["dev"] == ifname for r in during for q in r["qdiscs"]):
                series = tuple((t, v - sums[0][1]) for t, v in sums)
                found[f"{node}.{ifname}.qdisc_{field}"] = Measured(series[-1][1], "packet", series)
    return found


def since(rows: Rows, origin: float) -> Rows:
    """Return the samples of the run, beginning with the last before t = 0."""
    before = [r for r in rows if r["t"] <= origin]
    return before[-1:] + [r for r in rows if r["t"] > origin]


def mptcp(net: Network, node: str, rows: Rows, origin: float) -> dict[str, Measured]:
    """Return MPTCP counters, subflows of a connection at once, and bytes by the interface of a subflow's address."""
    during = since(rows, origin)
    if not during or "mib" not in during[0]:
        return {}
    found = {}
    for counter, first in during[0]["mib"].items():
        gauge = counter == "MPCurrEstab"
        series = tuple((r["t"] - origin, float(r["mib"][counter] - (0 if gauge else first))) for r in during)
        value = max(v for _, v in series) if gauge else series[-1][1]
        found[f"{node}.mptcp.{counter}"] = Measured(value, "connection" if gauge else "count", series)
    counts = [(r["t"] - origin, _most(r["subflows"])) for r in during]
    found[f"{node}.mptcp.subflows"] = Measured(
        max(c for _, c in counts), "subflow", tuple(counts), "most of one connection at once"
    )
    owner = {h: i.name for i in net.interfaces[node] for h in i.hosts()}
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    series_of: dict[tuple[str, str], list[tuple[float, float]]] = {}
    rtts: dict[str, list[float]] = {}
    for row in during:
        for s in row["subflows"]:
            key = (s["token"], s["local"], s["local_port"], s["remote"], s["remote_port"])
            before, latest[key] = latest.get(key), s
            # An idle connection, such as iperf3's control connection, would tell of the time when it was last used.
            if s["rtt_ms"] and (before is None or before["bytes_acked"] != s["bytes_acked"]):
                rtts.setdefault(owner.get(s["local"], s["local"]), []).append(s["rtt_ms"])
        for ifname in dict.fromkeys(owner.values()):
            mine = [s for s in latest.values() if owner.get(s["local"]) == ifname]
            for field in ("bytes_sent", "bytes_acked", "bytes_received", "retransmits"):
                total = float(sum(s[field] for s in mine))
                series_of.setdefault((ifname, field), []).append((row["t"] - origin, total))
    for (ifname, field), values in series_of.items():
        unit = "segment" if field == "retransmits" else "byte"
        found[f"{node}.subflow.{ifname}.{field}"] = Measured(
            values[-1][1], unit, tuple(values), "payload" if unit == "byte" else ""
        )
    for ifname, times in rtts.items():
        found[f"{node}.subflow.{ifname}.rtt_p50_ms"] = Measured(percentile(times, 0.5), "ms")
    return found


def _most(subflows: Rows) -> float:
    tokens = [s["token"] for s in subflows if s["state"] != "SYN_SENT"]
    return float(max((tokens.count(t) for t in set(tokens)), default=0))


def captures(node: str, logs: list[str]) -> dict[str, Measured]:
    """Return what dumpcap says at its end of the packets that it took and that it missed."""
    found = {}
    for said in filter(None, map(_CAPTURED.search, logs)):
        found[f"{node}.{said['dev']}.captured_packets"] = Measured(float(said["got"]), "packet")
        found[f"{node}.{said['dev']}.capture_drops"] = Measured(float(said["lost"]), "packet")
    return found


def machine(rows: Rows, origin: float) -> dict[str, Measured]:
    """Return the CPU use of the whole machine during the run."""
    during = [r for r in rows if r["t"] > origin]
    if not during:
        return {}
    cpu = [(r["t"] - origin, 100 * r["cpu"]) for r in during]
    # A single tick is too short to say anything of CPU use: take the busiest second that was seen for at least half.
    busy: dict[int, float] = {}
    seen: dict[int, float] = {}
    for (before, _), (t, used) in pairwise([(0.0, 0.0), *cpu]):
        busy[int(t)] = busy.get(int(t), 0.0) + used * (t - before)
        seen[int(t)] = seen.get(int(t), 0.0) + t - before
    means = [busy[second] / seen[second] for second in busy if seen[second] >= 0.5] or [cpu[-1][1]]
    return {
        "machine.cpu_max_pct": Measured(max(means), "%", tuple(cpu), "busiest second, all CPUs"),
        # A guest's Python adds otherwise than this one (since 3.12), and a report is to be the same on both.
        "machine.cpu_mean_pct": Measured(fsum(v for _, v in cpu) / len(cpu), "%"),
        "machine.steal_pct": Measured(100 * max(r["steal"] for r in during), "%"),
    }
