"""Flows of iperf3 that were meant to be MPTCP: how many of their connections were, at their server (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from testbed.language.topology import Topology
from testbed.metrics.connections import Connection
from testbed.metrics.measured import Measured
from testbed.metrics.records import Sample
from testbed.metrics.table import unit
from testbed.workloads.iperf3 import Iperf3
from testbed.workloads.place import FIRST_PORT, Expected


def _flows(topology: Topology) -> Iterator[tuple[str, Iperf3, int]]:
    """Yield the flows of MPTCP that iperf3 sends, with the port of their server."""
    for n, (name, work) in enumerate(topology.workloads.items()):
        flow = work.iperf3
        if flow is not None and flow.speaks == "mptcp" and flow.bytes is None:
            yield name, flow, flow.port or FIRST_PORT + n


def figures(
    topology: Topology, hosts: Mapping[str, Sequence[Sample]], found: Sequence[Connection], origin: float
) -> dict[str, Measured]:
    """Return how many connections of each flow were MPTCP and TCP; nothing of a server that was not looked at."""
    metrics = {}
    for name, flow, port in _flows(topology):
        rows = [r for r in hosts.get(flow.to, ()) if r.plain is not None]
        if not rows:
            continue
        spoke = {
            (view.node, view.token)
            for connection in found
            for view in connection.views
            if view.node == flow.to and any(line.local_port == port for line in view.subflows.values())
        }
        plain = {(local, remote) for r in rows if r.t > origin for local, remote in r.plain or () if local == port}
        if spoke or plain:
            for key, value in (("mptcp_connections", spoke), ("tcp_connections", plain)):
                metrics[f"{name}.{key}"] = Measured(len(value), unit("iperf3", key))
    return metrics


def expectations(topology: Topology, metrics: Mapping[str, Measured]) -> Iterator[Expected]:
    """Yield what `fallback` says of each flow: always where that was stated, else if a connection fell back."""
    for name, flow, _ in _flows(topology):
        what, expected = f"{name} tcp_connections", f"fallback: {flow.fallback or 'forbid'}"
        plain, spoke = (metrics.get(f"{name}.{key}") for key in ("tcp_connections", "mptcp_connections"))
        if flow.fallback == "allow":
            continue
        if plain is None or spoke is None:
            if flow.fallback is not None:
                why = f"it was not measured: it needs the role mptcp of {flow.to}, and a connection"
                yield Expected(what, expected, None, False, why)
            continue
        whole = plain.value + spoke.value
        if flow.fallback == "require":
            why = f"{spoke.value:.0f} of {whole:.0f} connections were MPTCP" if spoke.value else ""
            yield Expected(what, expected, plain.value, not spoke.value, why)
        elif flow.fallback is not None or plain.value:
            why = f"{plain.value:.0f} of {whole:.0f} connections fell back to TCP, as {flow.to} saw them"
            yield Expected(what, expected, plain.value, not plain.value, why if plain.value else "")
