"""The records of a run's raw files that a report reads; the holder and the sampler write them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from testbed.metrics.recorded import Count, Ifname, Real, Seconds, Word

_Text = Annotated[str, Meta(max_length=100_000)]
_Some = Meta(max_length=10_000)
_LinkId = Annotated[int, Meta(ge=0, le=15)]  # IEEE 802.11be
_Mhz = Annotated[int, Meta(ge=0, le=100_000)]


class Held(Struct, omit_defaults=True):
    """A bound of the lab: what enforces it, or why nothing does, and how often it took effect."""

    bound: Word
    by: _Text = ""
    unenforced: _Text = ""
    killed: Count = 0  # processes, for memory
    throttled_s: Seconds = 0.0  # without a processor


class Format(Struct, frozen=True):
    """The format of a results folder, as its manifest.json says it; 0 where it has none, as before format 1."""

    format: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Warned(Struct, frozen=True):
    """A warning of the file that was run."""

    name: Word
    message: _Text
    figures: _Text = ""  # what it makes doubtful


class Manifest(Struct, frozen=True):
    """manifest.json: the facts about a run that its report needs."""

    accelerator: str | None = None
    machine: str = "here"
    resources: Annotated[dict[Word, Held], Meta(max_length=10)] = {}
    warnings: Annotated[list[Warned], _Some] = []
    repeats: Annotated[int, Meta(ge=1, le=1_000_000)] = 1  # runs of the same case


class Planned(Struct, frozen=True):
    """plan.json: what a report needs of the plan.

    By node its interfaces, each with its addresses, and of a node with radios the links of each wireless interface by
    their frequency (MHz). What is captured, as (node, interface). Whether frames on the medium are counted. The time of
    each timed step (seconds after t = 0) by its number, and for each event of the file the numbers of its steps.
    """

    interfaces: dict[_Text, dict[Ifname, Annotated[list[Word], Meta(max_length=1000)]]]
    wlans: dict[_Text, dict[Ifname, dict[_Mhz, _LinkId]]] = {}
    captured: Annotated[list[tuple[_Text, Ifname]], Meta(max_length=5_000)] = []
    air: bool = False
    steps: Annotated[dict[Count, Real], Meta(max_length=1_000_000)] = {}
    events: Annotated[list[list[Count]], _Some] = []


class Happened(Struct, frozen=True):
    """A timed step, `n` its number in the plan, `step` its text, and when it was performed, `t` seconds after t = 0."""

    t: Real
    n: Count
    step: _Text


class Ended(Struct, frozen=True):
    """A process of the run and its exit status; negative for a signal, null while it lived."""

    node: _Text
    name: _Text
    status: Annotated[int, Meta(ge=-100, le=1000)] | None = None


class Run(Struct, frozen=True):
    """run.json: t = 0 of the run on both clocks (0 if it never started), its length, its steps, and what failed.

    `stalls` are (time since t = 0, seconds) in which the holder was not running when it should.
    """

    monotonic: Seconds
    seconds: Seconds
    time: Seconds = 0.0
    stalls: Annotated[list[tuple[Real, Seconds]], Meta(max_length=100_000)] = []
    events: Annotated[list[Happened], Meta(max_length=1_000_000)] = []
    failures: Annotated[list[_Text], _Some] = []
    processes: Annotated[list[Ended], Meta(max_length=1_000_000)] = []


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
    kind: Word = ""


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
    cwnd: Count = 0
    mss: Count = 0
    unacked: Count = 0
    dsack_dups: Count = 0
    bytes_retrans: Count = 0
    backup: bool = False
    here: bool | None = None  # nothing in a run of an earlier version, as the two below
    opened: Seconds | None = None
    closed: Seconds | None = None


class WlanLink(Struct, frozen=True, gc=False):
    """A link of a wireless interface; a station's links also have what it hears."""

    id: _LinkId
    mac: Word
    freq: _Mhz
    signal: Annotated[float, Meta(ge=-1000, le=1000)] | None = None
    seen_ms: Annotated[float, Meta(ge=0, le=1e12)] | None = None


class Wlan(Struct, frozen=True):
    """A wireless interface."""

    mlo: bool
    links: Annotated[list[WlanLink], Meta(max_length=16)]
    station: bool | None = None  # nothing in a run of an earlier version


class Sample(Struct, frozen=True):
    """A line of NODE/samples.jsonl; an MPTCP host has `mib` and `subflows`, a node with radios `wlans`.

    `closed` are subflows that ended since the sample before, `plain` the ports (local, remote) of connections of plain
    TCP, `addresses` those of each interface.
    A node that receives datagrams has `udp`: RcvbufErrors of /proc/net/snmp and snmp6. `roles` has what roles count.
    """

    t: Seconds
    interfaces: dict[Ifname, Counters]
    qdiscs: list[Qdisc]
    mib: Annotated[dict[Word, Count], Meta(max_length=1000)] | None = None
    subflows: list[Subflow] = []
    closed: list[Subflow] = []
    plain: Annotated[list[tuple[Count, Count]], Meta(max_length=1000)] | None = None
    addresses: dict[Ifname, Annotated[list[Word], Meta(max_length=1000)]] = {}
    wlans: dict[Ifname, Wlan] | None = None
    udp: Count | None = None
    up: Annotated[list[Ifname], _Some] | None = None
    roles: Annotated[dict[Word, Annotated[dict[Word, Count], Meta(max_length=1000)]], Meta(max_length=100)] = {}


class Replayed(Struct, frozen=True, gc=False):
    """A line of trace.jsonl: what a link that follows a trace was told, when, and `at`, when it was due in the run."""

    t: Seconds
    at: Real
    node: Word
    dev: Ifname


class Softnet(Struct, frozen=True):
    """The sums of /proc/net/softnet_stat: packets that found the backlog full, and rounds that ran out of time."""

    dropped: Count
    squeezed: Count


class Machine(Struct, frozen=True):
    """A line of machine.jsonl: both clocks, the busy share of all CPUs, and the share that a hypervisor took."""

    t: Seconds
    time: Seconds
    cpu: Annotated[float, Meta(ge=0, le=1)]
    steal: Annotated[float, Meta(ge=0, le=1)]
    softnet: Softnet | None = None


class Air(Struct, frozen=True):
    """A line of air.jsonl: rows of MHz, transmitter, receiver, frames, bytes; and the number of missed frames."""

    t: Seconds
    frames: list[tuple[_Mhz, Word, Word, Count, Count]]
    drops: Count


class Told(Struct, frozen=True):
    """A line of NODE/wlan-events.jsonl: an event of nl80211; `status` is 0 of a join that was granted."""

    t: Seconds
    event: Word
    links: Annotated[list[_LinkId], Meta(max_length=16)] = []
    status: Count = 0

    @property
    def joined(self) -> bool:
        """Whether this is an association that the access point granted."""
        return self.event == "connect" and not self.status


class Noted(Struct, frozen=True, gc=False):
    """A line of NODE/mptcp-events.jsonl: an event that a path manager heard; other lines have none."""

    t: Seconds
    event: Annotated[str, Meta(max_length=64)] = ""
