"""MPTCP flows that were seen on one path only, and subflows that left by another interface (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from testbed.language.topology import Topology
from testbed.metrics.measured import Measured

_LITTLE = 0.01  # of what a host carried: its control connections
_SLACK = 20_000  # bytes between two counters that are read one after the other
# Where a path is kept in reserve it is idle on purpose.
_RESERVE = ("MPJoinSynBackupRx", "MPJoinSynAckBackupRx", "MPPrioTx", "MPPrioRx")


def doubts(topology: Topology, metrics: Mapping[str, Measured]) -> Iterator[tuple[float, str, str]]:
    """Yield (how bad, what it affects, what was seen) of each flow."""
    flows = [(name, flow) for name, w in topology.workloads.items() if (flow := w.mptcp()) is not None]
    told: set[str] = set()
    for name, flow in flows:
        node = flow.from_
        carried = _carried(metrics, node)
        total = sum(carried.values())
        if len(carried) < 2 or not total:
            continue
        used = [ifname for ifname, count in carried.items() if count > _LITTLE * total]
        reserve = any(_value(metrics, f"{n}.mptcp.{c}") for n in (node, flow.to) for c in _RESERVE)
        if len(used) == 1 and not reserve:
            most = _value(metrics, f"{node}.mptcp.subflows")
            what = f"MPTCP stayed on one path: {node} used {used[0]} only, with at most {most:.0f} subflows at once"
            yield 1.0, f"the rates of {name}", what
        for ifname, count in carried.items() if node not in told else ():
            wire = sum(_value(metrics, f"{node}.{ifname}.{way}_bytes") for way in ("tx", "rx"))
            if count > wire + _SLACK:
                what = f"subflows of its addresses carried {count:.0f} bytes, and the interface {wire:.0f}"
                yield 2.0, f"{node}.subflow.{ifname}", f"{what}: they took another one"
        told.add(node)


def unanswered(topology: Topology, metrics: Mapping[str, Measured]) -> Iterator[tuple[float, str, str]]:
    """Yield hosts none of whose joins got an answer, in a run in which nothing was meant to happen to the network."""
    if any(e.link is not None or e.address is not None for e in topology.events):
        return
    refused = sum(_value(metrics, f"{name}.mptcp.MPJoinRejected") for name in topology.nodes)
    for name in topology.nodes:
        asked, answers = (_value(metrics, f"{name}.mptcp.{c}") for c in ("MPJoinSynTx", "MPJoinSynAckRx"))
        if asked and not answers and not refused:
            why = "a server that listens on one address refuses joins to another, and middleboxes drop them"
            yield 1.0, f"the paths of {name}", f"none of its {asked:.0f} joins was answered: {why}"


def _carried(metrics: Mapping[str, Measured], node: str) -> dict[str, float]:
    """Return the payload of the subflows of each interface of a node."""
    found: dict[str, float] = {}
    for key in ("bytes_received", "bytes_acked"):
        for name, metric in metrics.items():
            if name.startswith(f"{node}.subflow.") and name.endswith(f".{key}"):
                ifname = name.removeprefix(f"{node}.subflow.").removesuffix(f".{key}")
                found[ifname] = found.get(ifname, 0.0) + metric.value
    return found


def _value(metrics: Mapping[str, Measured], name: str) -> float:
    return metrics[name].value if name in metrics else 0.0
