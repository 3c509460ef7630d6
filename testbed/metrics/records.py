"""The records of a run's raw files: what the holder and the sampler write, as far as a report reads it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from testbed.metrics.recorded import Count, Ifname, Real, Seconds, Word

_Text = Annotated[str, Meta(max_length=100_000)]
_Some = Meta(max_length=10_000)
_LinkId = Annotated[int, Meta(ge=0, le=15)]  # IEEE 802.11be
_Mhz = Annotated[int, Meta(ge=0, le=100_000)]


class Held(Struct, omit_defaults=True):
    """A bound of the lab as it is held: by what, or why it is not; and what it has done until now."""

    bound: Word
    by: _Text = ""
    unenforced: _Text = ""
    killed: Count = 0  # processes, for memory
    throttled_s: Seconds = 0.0  # without a processor


class Manifest(Struct, frozen=True):
    """manifest.json: the circumstances of a run that its report needs."""

    overrides: Annotated[list[_Text], _Some]
    settings: Annotated[list[_Text], _Some]
    accelerator: str | None = None
    machine: str = "here"
    resources: Annotated[dict[Word, Held], Meta(max_length=10)] = {}


class Happened(Struct, frozen=True):
    """A timed step as it was performed, `t` seconds after t = 0."""

    t: Real
    step: _Text


class Run(Struct, frozen=True):
    """run.json: t = 0 of the run (0: it did not come so far), how long it took, what happened, what failed.

    `stalls` are (time since t = 0, seconds) in which the holder did not run although it was to.
    """

    monotonic: Seconds
    seconds: Seconds
    stalls: Annotated[list[tuple[Real, Seconds]], Meta(max_length=100_000)] = []
    events: Annotated[list[Happened], Meta(max_length=1_000_000)] = []
    failures: Annotated[list[_Text], _Some] = []


class Counters(Struct, frozen=True, gc=False):
    """The counters of an interface (struct rtnl_link_stats64)."""

    rx_packets: Count
    tx_packets: Count
    rx_bytes: Count
    tx_bytes: Count
    rx_errors: Count
    tx_errors: Count
    rx_dropped: Count
    tx_dropped: Count


class Qdisc(Struct, frozen=True, gc=False):
    """A queue discipline of an interface."""

    dev: Ifname
    drops: Count
    overlimits: Count


class Subflow(Struct, frozen=True, gc=False):
    """A subflow of an MPTCP connection (see linux/inet_diag.py)."""

    token: Count
    local: Word
    local_port: Count
    remote: Word
    remote_port: Count
    state: Word
    rtt_ms: Annotated[float, Meta(ge=0, le=1e9)]
    bytes_sent: Count
    bytes_acked: Count
    bytes_received: Count
    retransmits: Count


class WlanLink(Struct, frozen=True, gc=False):
    """A link of a wireless interface; those of a station have what it hears of it."""

    id: _LinkId
    mac: Word
    freq: _Mhz
    signal: Annotated[float, Meta(ge=-1000, le=1000)] | None = None
    seen_ms: Annotated[float, Meta(ge=0, le=1e12)] | None = None


class Wlan(Struct, frozen=True):
    """A wireless interface."""

    mlo: bool
    links: Annotated[list[WlanLink], Meta(max_length=16)]


class Sample(Struct, frozen=True):
    """A line of NODE/samples.jsonl; `mib` and `subflows` are of an MPTCP host, `wlans` of a node with radios.

    `udp` are RcvbufErrors of a node that receives datagrams (/proc/net/snmp and snmp6).
    """

    t: Seconds
    interfaces: dict[Ifname, Counters]
    qdiscs: list[Qdisc]
    mib: Annotated[dict[Word, Count], Meta(max_length=1000)] | None = None
    subflows: list[Subflow] = []
    wlans: dict[Ifname, Wlan] | None = None
    udp: Count | None = None


class Softnet(Struct, frozen=True):
    """/proc/net/softnet_stat of all CPUs: packets that found the backlog full, and rounds that ran out of time."""

    dropped: Count
    squeezed: Count


class Machine(Struct, frozen=True):
    """A line of machine.jsonl: both clocks, shares of all CPUs that were busy, and that a hypervisor took."""

    t: Seconds
    time: Seconds
    cpu: Annotated[float, Meta(ge=0, le=1)]
    steal: Annotated[float, Meta(ge=0, le=1)]
    softnet: Softnet | None = None


class Air(Struct, frozen=True):
    """A line of air.jsonl: rows of MHz, transmitter, receiver, frames, bytes; and frames that were missed."""

    t: Seconds
    frames: list[tuple[_Mhz, Word, Word, Count, Count]]
    drops: Count


class Told(Struct, frozen=True):
    """A line of NODE/wlan-events.jsonl: what nl80211 told."""

    t: Seconds
    event: Word
    links: Annotated[list[_LinkId], Meta(max_length=16)] = []
