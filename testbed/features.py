"""What a topology may require of a machine: each feature a name, what it is for and how to get it (data only)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Feature:
    """Something that a kernel or a machine offers or not; `machines.here` knows how each is probed."""

    name: str
    purpose: str
    cure: str
    refused: bool = False  # a kernel without it refuses the step that needs it: no probe is needed beforehand


def _qdisc(kind: str, purpose: str) -> Feature:
    return Feature(kind, purpose, f"modprobe sch_{kind}, or a kernel with CONFIG_NET_SCH_{kind.upper()}", refused=True)


def _tool(name: str, purpose: str, package: str) -> Feature:
    return Feature(name, purpose, f"apt-get install {package}")


USERNS = Feature("userns", "labs without root", "sysctl user.max_user_namespaces=10000, or run as root", refused=True)
VETH = Feature("veth", "links", "modprobe veth, or a kernel with CONFIG_VETH", refused=True)
BRIDGE = Feature("bridge", "role bridge", "modprobe bridge, or a kernel with CONFIG_BRIDGE", refused=True)
MPTCP = Feature("mptcp", "role mptcp", "a kernel with CONFIG_MPTCP (5.6 or later), and sysctl net.mptcp.enabled=1")
MPTCP_DIAG = Feature("mptcp-diag", "subflows in the samples", "modprobe mptcp_diag, or CONFIG_INET_MPTCP_DIAG")
IPV6 = Feature("ipv6", "family ipv6", "a kernel with CONFIG_IPV6 and without ipv6.disable=1", refused=True)
IPERF3 = _tool("iperf3", "workload iperf3", "iperf3")
MPTCPIZE = _tool("mptcpize", "iperf3 with protocol: mptcp", "mptcpize")
DUMPCAP = _tool("dumpcap", "capture", "wireshark-common")
PING = _tool("ping", "workload ping", "iputils-ping")
QDISCS = {
    "netem": _qdisc("netem", "delay, jitter, loss, duplicate, corrupt, reorder"),
    "tbf": _qdisc("tbf", "rate"),
    "fq_codel": _qdisc("fq_codel", "queue: fq_codel"),
    "codel": _qdisc("codel", "queue: codel"),
    "fq": _qdisc("fq", "queue: fq"),
    "cake": _qdisc("cake", "queue: cake"),
    "bfifo": Feature("bfifo", "queue limits in bytes", "a kernel with CONFIG_NET_SCH_FIFO", refused=True),
    "pfifo": Feature("pfifo", "queue limits in packets", "a kernel with CONFIG_NET_SCH_FIFO", refused=True),
}
ALL = (USERNS, VETH, BRIDGE, IPV6, MPTCP, MPTCP_DIAG, *QDISCS.values(), IPERF3, MPTCPIZE, DUMPCAP, PING)
