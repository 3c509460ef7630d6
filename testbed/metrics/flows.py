"""The figures of workloads that send streams: rows of the table of all figures (pure data)."""

from __future__ import annotations

from testbed.metrics.metric import Metric, times

_TCP, _UDP, _STREAM = ("tcp",), ("udp",), ("tcp", "mptcp")

FLOW = (
    Metric(
        "iperf3",
        "goodput_mbps",
        "Mbit/s",
        "payload that arrived at the receiver, divided by the receiver's time; series by the second",
        "higher",
    ),
    Metric("iperf3", "received_bytes", "byte", "payload that arrived", "higher"),
    Metric("iperf3", "seconds", "s", "the receiver's time"),
    Metric(
        "iperf3",
        "start_s",
        "s",
        "when its first data left the sender: the packet that starts iperf3's test, as the kernel stamped it, and the "
        "first interval of the sender's report that has a byte",
        "lower",
    ),
    Metric(
        "iperf3",
        "gap_s",
        "s",
        "longest time in which the receiver got nothing. The resolution is 0.1 s, the interval of iperf3's report. A "
        "receiver that does not get the processor has one long interval instead, which counts except for 0.1 s",
        "lower",
    ),
    Metric("iperf3", "gap_at_s", "s", "when that gap began"),
    Metric(
        "iperf3",
        "loss_pct",
        "%",
        "UDP: share of datagrams that did not arrive, as counted by the receiver",
        "lower",
        _UDP,
    ),
    Metric("iperf3", "jitter_ms", "ms", "UDP: RFC 3550 section 6.4.1", "lower", _UDP),
    Metric("iperf3", "reorder_packets", "packet", "UDP: datagrams that arrived out of order", "lower", _UDP),
    Metric("iperf3", "retransmits", "segment", "TCP: segments that the sender sent again", "lower", _TCP),
    *times(
        "iperf3",
        "rtt",
        "TCP and MPTCP: the sender's smoothed RTT (tcp_info), read every 0.1 s",
        _STREAM,
    ),
)


SPOKE = (
    Metric(
        "iperf3",
        "mptcp_connections",
        "connection",
        "MPTCP: connections of the flow that were MPTCP at their server, with the control connection; the server needs "
        "the role `mptcp`",
        "",
        ("mptcp",),
    ),
    Metric(
        "iperf3",
        "tcp_connections",
        "connection",
        "MPTCP: connections that were plain TCP at their server: the handshake had fallen back",
        "",
        ("mptcp",),
    ),
)


def reversed_row(metric: Metric, of: str = "bidir") -> Metric:
    """Return the row of the same figure of what `to` sends in a flow that goes both ways."""
    of_it = f"with `bidir`: `{metric.name}` of what `to` sends"
    return Metric(of, f"reverse_{metric.name}", metric.unit, of_it, metric.better, metric.when)


_BOTH_WAYS = (
    Metric(
        "transfer",
        "goodput_mbps",
        "Mbit/s",
        "payload that arrived, by the time from the first byte that left to the last that arrived; series by 50 ms",
        "higher",
    ),
    Metric("transfer", "received_bytes", "byte", "payload that arrived", "higher"),
    Metric("transfer", "seconds", "s", "from the first byte that left to the last that arrived"),
    Metric("transfer", "start_s", "s", "when its first byte left", "lower"),
    Metric(
        "transfer",
        "completion_s",
        "s",
        "with `bytes`: from the first byte that left until the last had arrived; absent if not all did",
        "lower",
    ),
    Metric(
        "transfer",
        "gap_s",
        "s",
        "longest time between two arrivals of data, of any connection; where data is missing, also that after the last",
        "lower",
    ),
    Metric("transfer", "gap_at_s", "s", "when that gap began"),
    Metric("transfer", "retransmits", "segment", "TCP: segments that the sender sent again", "lower", _TCP),
    *times("transfer", "rtt", "the sender's smoothed RTT (tcp_info) of each connection or subflow, at each `interval`"),
    Metric(
        "transfer",
        "reinjected_pct",
        "%",
        "MPTCP: share of the payload given to subflows that had been given to one before (`mptcpi_bytes_retrans`)",
        "lower",
        ("mptcp",),
    ),
)
TRANSFER = (
    *_BOTH_WAYS,
    Metric(
        "transfer", "mptcp_connections", "connection", "connections that spoke MPTCP to their end, as both ends say"
    ),
    Metric(
        "transfer", "tcp_connections", "connection", "connections that were TCP, or fell back to it (`TCP_IS_MPTCP`)"
    ),
    Metric("reply", "answers", "count", "answers that arrived whole", "higher"),
    *times("reply", "latency", "from when a request was due until its answer had arrived whole"),
    *(reversed_row(m, "back") for m in _BOTH_WAYS),
)
