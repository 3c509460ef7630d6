"""Every figure that a run measures: one table, for checks, the report, comparison and docs/metrics.md (pure data)."""

from __future__ import annotations

from itertools import groupby
from typing import get_args

from testbed.drivers.mptcp_pm import Kind
from testbed.metrics.flows import FLOW, SPOKE, TRANSFER, reversed_row
from testbed.metrics.metric import Metric, times

# How the names of what a row belongs to begin. The figures of a role (testbed/nodes) belong to the name of its field.
OWNERS = {
    "iperf3": "WORKLOAD.",
    "bidir": "WORKLOAD.",
    "transfer": "WORKLOAD.",
    "reply": "WORKLOAD.",
    "back": "WORKLOAD.",
    "ping": "WORKLOAD.",
    "multicast": "WORKLOAD.",
    "receiver": "WORKLOAD.NODE.",
    "interface": "NODE.INTERFACE.",
    "wlan": "NODE.INTERFACE.",
    "mlo_link": "NODE.INTERFACE.linkN.",
    "mptcp": "NODE.mptcp.",
    "events": "NODE.mptcp.events.",
    "middlebox": "NODE.middlebox.",
    "path": "NODE.path.INTERFACE/PEER:INTERFACE.",
    "subflow": "NODE.subflow.INTERFACE.",
    "TcpExt": "NODE.TcpExt.",
    "IpExt": "NODE.IpExt.",
    "machine": "machine.",
}
KERNEL = ("TcpExt", "IpExt")  # groups of /proc/net/netstat of which a check may name any counter
COUNTER = "COUNTER"  # stands for every counter that the kernel has in a group

TABLE = (
    *FLOW,
    *SPOKE,
    *TRANSFER,
    *(reversed_row(m) for m in FLOW),
    Metric("ping", "sent_packets", "packet", "ping(8)'s own counts"),
    Metric("ping", "received_packets", "packet", "ping(8)'s own counts", "higher"),
    Metric(
        "ping", "loss_pct", "%", "share of requests without a reply within a second after the last request", "lower"
    ),
    Metric("ping", "duplicate_packets", "packet", "replies that arrived twice", "lower"),
    *times("ping", "rtt", "RTT of each reply, without duplicates, with the three digits that ping prints"),
    Metric("multicast", "sent_packets", "packet", "packets that the kernel accepted"),
    Metric(
        "multicast",
        "send_errors",
        "packet",
        "packets that the kernel refused; they were not sent and do not count as losses",
        "lower",
    ),
    Metric("multicast", "late_max_ms", "ms", "maximum delay of the source behind its schedule", "lower"),
    Metric(
        "multicast",
        "skipped_packets",
        "packet",
        "packets skipped because the source was more than 50 ms late; they do not count as losses",
        "lower",
    ),
    Metric(
        "receiver",
        "sent_packets",
        "packet",
        "packets that the receiver should get: all, or after a later join, from the first packet that it got until it "
        "left",
    ),
    Metric("receiver", "received_packets", "packet", "distinct packets of these that arrived", "higher"),
    Metric("receiver", "lost_packets", "packet", "the rest; 100 % if nothing arrived", "lower"),
    Metric("receiver", "loss_pct", "%", "the rest; 100 % if nothing arrived", "lower"),
    Metric(
        "receiver",
        "lost_outside_gap_packets",
        "packet",
        "losses outside the gap with the most losses",
        "lower",
    ),
    Metric(
        "receiver",
        "reorder_packets",
        "packet",
        "packets with a lower sequence number than an earlier one (RFC 4737 section 3.3)",
        "lower",
    ),
    Metric("receiver", "duplicate_packets", "packet", "packets that arrived again", "lower"),
    *times(
        "receiver",
        "delay",
        "one-way delay from just before the source's send(2) to the time stamp of the receiving kernel (RFC 7679)",
    ),
    Metric("receiver", "jitter_ms", "ms", "RFC 3550 section 6.4.1, at the end", "lower"),
    Metric(
        "receiver",
        "join_ms",
        "ms",
        "from the join, or the first packet sent if that was later, to the first packet that arrived",
        "lower",
    ),
    Metric(
        "receiver",
        "gap_s",
        "s",
        "longest time without a packet while the source was sending, from the first packet to the last",
        "lower",
    ),
    Metric("receiver", "gap_at_s", "s", "when that gap began"),
    Metric(
        "receiver",
        "goodput_mbps",
        "Mbit/s",
        "UDP payload that arrived, divided by the time in which it was sent; series by the second",
        "higher",
    ),
    Metric(
        "receiver",
        "socket_drops",
        "packet",
        "packets that found the receiving socket's buffer full (`/proc/net/udp`); they count as lost",
        "lower",
    ),
    *(
        Metric("interface", f"{way}_{what}", unit, "the kernel's counters (IFLA_STATS64) since t = 0")
        for what, unit in (("packets", "packet"), ("bytes", "byte"))
        for way in ("rx", "tx")
    ),
    *(
        Metric("interface", f"{way}_{what}", "packet", "the kernel's counters (IFLA_STATS64) since t = 0", "lower")
        for what in ("errors", "dropped")
        for way in ("rx", "tx")
    ),
    *(
        Metric("interface", f"{way}_mbps", "Mbit/s", "bytes between two samples; the value is the highest of the run")
        for way in ("rx", "tx")
    ),
    *(
        Metric("interface", f"qdisc_{what}", "packet", "sum over all queue disciplines of the interface", "lower")
        for what in ("drops", "overlimits")
    ),
    Metric("interface", "captured_packets", "packet", "with a capture: packets that dumpcap(1) recorded and missed"),
    Metric(
        "interface", "capture_drops", "packet", "with a capture: packets that dumpcap(1) recorded and missed", "lower"
    ),
    Metric("wlan", "links", "link", "active links at the end (nl80211); series by the sample"),
    Metric("wlan", "connects", "join", "stations: associations since t = 0 that the access point granted (nl80211)"),
    *(
        Metric(
            "mlo_link",
            f"{way}_{what}",
            unit,
            "data frames with the link's address as transmitter or receiver, counted on the medium since t = 0; bytes "
            "are those of the 802.11 frame",
        )
        for what, unit in (("frames", "frame"), ("bytes", "byte"))
        for way in ("tx", "rx")
    ),
    Metric("mlo_link", "share_pct", "%", "the link's share of all data frames of the interface, in both directions"),
    Metric(
        "mlo_link", "active", "", "1 while the link is set up and in use, otherwise 0; the value is that of the end"
    ),
    Metric("mlo_link", "freq_mhz", "MHz", "its channel while it is active"),
    Metric("mlo_link", "signal_dbm", "dBm", "station: median signal of what it received from its access point"),
    Metric("mlo_link", "seen_max_ms", "ms", "station: longest time without a beacon, over all samples", "lower"),
    Metric(
        "mlo_link", "removed_at_s", "s", "station: time after t = 0 at which nl80211 reported the removal of the link"
    ),
    Metric(
        "mptcp",
        "subflows",
        "subflow",
        "highest number of established subflows of one connection at once (inet_diag), without those that are being "
        "opened or closed",
    ),
    Metric("mptcp", "MPCurrEstab", "connection", "gauge: the highest number of MPTCP connections at once"),
    Metric(
        "mptcp",
        COUNTER,
        "count",
        "every counter of the group `MPTcpExt` in `/proc/net/netstat`, by the kernel's own name, since t = 0",
    ),
    *(
        Metric(
            "events",
            kind,
            "count",
            "events of this name since t = 0, of a path manager in user space; 0 where none came",
        )
        for kind in get_args(Kind)
    ),
    *(
        Metric("events", f"{kind}_first_s", "s", "time after t = 0 of the first one; absent where none came")
        for kind in get_args(Kind)
    ),
    *(
        Metric(
            group,
            COUNTER,
            "count",
            f"a counter of the group `{group}` in `/proc/net/netstat` that a check names, by the kernel's own name, "
            "since t = 0",
        )
        for group in KERNEL
    ),
    Metric(
        "middlebox",
        COUNTER,
        "packet",
        "packets that a rule acted on since t = 0, by its name: a counter of nf_tables. With `nat`, first packets of "
        "connections",
    ),
    Metric(
        "path",
        "bytes_sent",
        "byte",
        "payload that left on this path, including retransmissions. Where a queue of the host itself dropped packets: "
        "what was acknowledged, was on the way, or arrived twice",
    ),
    Metric("path", "bytes_acked", "byte", "the part that the peer acknowledged"),
    Metric("path", "share_pct", "%", "the path's share of all `bytes_sent` of the host"),
    Metric(
        "path",
        "retransmits",
        "segment",
        "segments that TCP sent again, including those that a queue of the host then dropped",
        "lower",
    ),
    *times("path", "rtt", "the sender's smoothed RTT (tcp_info), in samples since which data was acknowledged"),
    Metric(
        "path",
        "opened_at_s",
        "s",
        "when its first subflow was seen established: subflows are looked at 50 times a second, and more rarely where "
        "there are many",
        "lower",
    ),
    Metric("path", "closed_at_s", "s", "when its last subflow was gone, absent while one was there"),
    Metric("path", "opened_here", "", "1 if this host opened its first subflow, 0 if the peer did"),
    Metric("path", "subflows", "subflow", "how many subflows it had, one after another or of several connections"),
    Metric("path", "backup", "", "1 while either side asked for it to be a backup, otherwise 0; the value is the last"),
    Metric("path", "cwnd_p50_segments", "segment", "median of the sender's congestion window in the same samples"),
    Metric("subflow", "bytes_sent", "byte", "sum over the paths from addresses of this interface"),
    Metric("subflow", "bytes_acked", "byte", "sum over the paths from addresses of this interface"),
    Metric("subflow", "bytes_received", "byte", "payload that arrived at addresses of this interface, each byte once"),
    Metric("subflow", "retransmits", "segment", "sum over the paths from addresses of this interface", "lower"),
    Metric("subflow", "rtt_p50_ms", "ms", "median over the samples of these paths", "lower"),
    Metric(
        "machine",
        "cpu_max_pct",
        "%",
        "share of all CPUs that was busy, in the busiest second (`/proc/stat`)",
        "lower",
    ),
    Metric("machine", "cpu_mean_pct", "%", "the same, over the whole run", "lower"),
    Metric("machine", "steal_pct", "%", "highest share that a hypervisor took, over all samples", "lower"),
    Metric(
        "machine",
        "softnet_dropped",
        "packet",
        "packets that found the kernel's receive queue full (`/proc/net/softnet_stat`), since t = 0",
        "lower",
    ),
    Metric(
        "machine",
        "softnet_squeezed",
        "count",
        "receive rounds that ended with packets left, because time or budget ran out",
        "lower",
    ),
)


def names(of: str, protocol: str = "") -> tuple[str, ...]:
    """Return the names of what belongs to one kind of owner, for a flow those of its protocol."""
    return tuple(m.name for m in TABLE if m.of == of and (not m.when or not protocol or protocol in m.when))


def unit(of: str, name: str) -> str:
    """Return the unit of a figure, which the table must have."""
    return _ROWS[of, name].unit


def find(metric: str) -> Metric | None:
    """Return the row of a figure by its whole name as metrics.json has it, None when the table has none.

    A name ends in the same word for every owner that has it, and means the same (a test says so); counters of the
    kernel have names of their own.
    """
    head, _, last = metric.rpartition(".")
    of = head.rpartition(".")[2]
    return metric_of(of, last) or metric_of(of, COUNTER) or _LAST.get(last)


def metric_of(of: str, name: str) -> Metric | None:
    """Return the row of a figure by its owner's kind and its name there, None when the table has none."""
    return _ROWS.get((of, name))


def begins(owner: str) -> bool:
    """Say whether figures are named NODE.OWNER.*: those of a role."""
    return OWNERS.get(owner, "").startswith(f"NODE.{owner}.")


def of_role(metric: str) -> bool:
    """Say whether a figure, by its whole name, is one that the kernel counts for a role."""
    owner = metric.rpartition(".")[0].rpartition(".")[2]
    return begins(owner) and not by_interface(owner)


def by_interface(owner: str) -> bool:
    """Say whether an owner's figures are those of each interface."""
    return "INTERFACE" in OWNERS[owner]


def markdown(of: str) -> str:
    """Return the table of docs/metrics.md for one kind of owner; figures that are measured alike share a row."""
    rows = ["| metric | unit | how it is measured |", "|---|---|---|"]
    for how, same in groupby((m for m in TABLE if m.of == of), lambda m: m.how):
        group = list(same)
        units = ", ".join(dict.fromkeys(m.unit for m in group))
        rows.append(f"| {' '.join(f'`{m.name}`' for m in group)} | {units} | {how} |")
    return "\n".join(rows)


_ROWS = {(m.of, m.name): m for m in TABLE}
_LAST = {m.name: m for m in TABLE if m.name != COUNTER}
