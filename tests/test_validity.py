"""When a figure is the machine's and not the lab's: what the recorded runs and rows made by hand say (no kernel)."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from testbed.language.topology import Topology
from testbed.metrics import nodes as metrics
from testbed.metrics.measured import Measured
from testbed.metrics.recorded import Recorded
from testbed.metrics.records import Air, Happened, Held, Machine, Manifest, Run, Softnet
from testbed.programs.multicast import receiver
from testbed.programs.multicast.packets import PACKET
from testbed.programs.sampler import main as sampler
from testbed.report import doubts as validity
from testbed.report.doubts import Seen
from testbed.workloads.iperf3_report import Part
from testbed.workloads.iperf3_report import gap as longest
from testbed.workloads.ping import Ping

ORIGIN = 1000.0
LAB = Topology.model_validate({"name": "l", "nodes": {"a": {}, "b": {}}, "links": [{"ends": ["a:e", "b:e"]}]})


def ticks(*times: float, ahead: float = 5e8) -> list[Machine]:
    return [Machine(ORIGIN + t, ORIGIN + t + ahead, 0.1, 0.0) for t in times]


def steady(begin: float, end: float) -> list[float]:
    return [begin + n / 4 for n in range(int((end - begin) * 4) + 1)]


def said(machine: list[Machine], run: Run | None = None, **more: object) -> list[tuple[str, str]]:
    run = run or Run(ORIGIN, 10.0)
    values = {"metrics": {}, "air": [], "udp": {}, "works": [], "kernel": [], "manifest": Manifest()}
    values |= {"topology": LAB, **more}
    return [(d.what, d.seen) for d in validity.doubts(Seen(run=run, machine=machine, **values))]  # type: ignore[arg-type]


def test_a_steady_run_has_no_doubts() -> None:
    assert said(ticks(*steady(-2, 10)), Run(ORIGIN, 10.0, stalls=[(3.0, 0.3)])) == []
    assert said(ticks(*steady(-2, 4), *steady(4.7, 10))) == [], "0.45 s late is no stall"


def test_a_sampler_that_did_not_run_is_told_from_a_machine_that_stood_still() -> None:
    gap = ticks(*steady(-2, 4), *steady(7.25, 10))
    sampler = ("counters and rates by the sample", "the sampler did not run for 3.0 s from 4.2 s on")
    assert said(gap) == [sampler]
    assert said(gap, Run(ORIGIN, 10.0, stalls=[(8.0, 3.0)])) == [
        sampler,
        ("what begins or ends at a time", "the holder did not run for 3.0 s from 8.0 s on"),
    ]
    still = (
        "every rate, delay and gap",
        "the machine stood still: neither sampler nor holder ran for 3.0 s from 4.2 s on",
    )
    assert said(gap, Run(ORIGIN, 10.0, stalls=[(4.1, 3.1)])) == [still]


def test_what_was_before_t_0_and_after_the_end_is_none_of_the_run() -> None:
    assert said(ticks(-9.0, *steady(-3, 10), 14.0)) == []


def test_a_clock_that_was_set_is_a_doubt_with_its_time_and_its_way() -> None:
    rows = [*ticks(*steady(0, 3)), *ticks(*steady(3.25, 5), ahead=5e8 + 100), *ticks(*steady(5.25, 9), ahead=5e8 - 200)]
    what = "times of captures and logs, and ping's RTT at that moment"
    assert said(rows) == [
        (what, "somebody set the clock back by 300 s at 5.2 s"),
        (what, "somebody set the clock forward by 100 s at 3.2 s"),
    ]
    assert said(ticks(*steady(0, 3)) + ticks(*steady(3.25, 9), ahead=5e8 + 0.015)) == [], (
        "they are read one after other"
    )


def test_steps_that_began_late_are_one_doubt_and_the_worst_is_named() -> None:
    events = [Happened(0.02, 3, "[a]& ping b  @0s within 33s"), Happened(4.6, 4, "[a] ip link set e down  @4s")]
    events += [Happened(6.9, 7, "[b]& echo '  @1s'  @4s within 60s"), Happened(99.0, 8, "of no plan")]
    what, seen = said(ticks(*steady(-1, 10)), Run(ORIGIN, 10.0, events=events), steps={3: 0.0, 4: 4.0, 7: 4.0})[0]
    assert what == "what begins at a time"
    assert seen == "2 of 3 steps began late, most of all, 2.9 s: [b]& echo '  @1s'"


def test_the_kernels_own_queue_counts_where_links_are_shaped_too() -> None:
    text = "00002eae 0000000a 00000003 00000000\n0000000d 00000f00 00000000 00000000\n"
    assert sampler.softnet(text) == {"softnet": {"dropped": 0xF0A, "squeezed": 3}}
    rows = [Machine(ORIGIN + t, 5e8, 0.1, 0.0, Softnet(100 + 10 * int(t), 7)) for t in (-1.0, 1.0, 2.0)]
    found = metrics.machine(rows, ORIGIN)
    assert found["machine.softnet_dropped"].value == 30
    assert found["machine.softnet_squeezed"].value == 0
    (what, seen), *_ = said(ticks(*steady(-1, 10)), metrics=found)
    assert (what, seen.partition(" found")[0]) == ("every flow of the machine", "30 packets")
    back = [Machine(ORIGIN + t, 5e8, 0.1, 0.0, Softnet(100 - int(t), 7)) for t in (0.0, 1.0)]
    assert "machine.softnet_dropped" not in metrics.machine(back, ORIGIN), "a counter that goes back is not known"


def test_doubts_are_ordered_by_what_they_affect_and_then_by_how_bad_they_are() -> None:
    figures = {
        "a.e.rx_dropped": Measured(3, "packet"),
        "b.e.rx_dropped": Measured(9, "packet"),
        "machine.cpu_max_pct": Measured(99, "%"),
    }
    works = [(1.0, "loss of x", "little"), (7.0, "loss of y", "much")]
    found = said(ticks(*steady(-1, 4), *steady(6, 10)), metrics=figures, works=works, kernel=["[1.0] WARNING: at x"])
    assert [what for what, _ in found] == [
        *("everything", "counters and rates by the sample", "every rate and delay", "loss of y", "loss of x"),
        "flows through b.e, a.e",
    ]


def test_a_kernel_that_complains_without_end_fills_no_report() -> None:
    found = said(ticks(*steady(-1, 10)), kernel=[f"[{n}.0] WARNING: at x" for n in range(5000)])
    assert len(found) == 4
    assert found[-1][1] == "the kernel says more of this kind: 4997 lines of dmesg.log"


def test_what_was_lost_on_the_way_is_named_where_it_was_lost() -> None:
    figures = {
        **{f"x{n:02}.e.qdisc_drops": Measured(100 - n, "packet") for n in range(12)},
        "a.e.capture_drops": Measured(4, "packet"),
        "b.e.capture_drops": Measured(0, "packet"),
    }
    warnings = [
        "[1.0] WARNING: drivers/net/wireless/virtual/mac80211_hwsim_main.c:2004 at mac80211_hwsim_tx+0x1/0x2"
    ] * 3
    found = said(
        ticks(*steady(-1, 10)), metrics=figures, udp={"a": 7, "b": 0}, air=[Air(ORIGIN, [], 2)], kernel=warnings
    )
    assert found[0] == ("the loss of UDP flows to a", "7 datagrams found the buffer of a receiving program full")
    assert found[1:] == [
        (
            "flows through x00.e, x01.e, x02.e and 9 more interfaces",
            "1134 packets dropped (qdisc_drops) where no shaping was asked for, most of them, 100, at the first",
        ),
        ("the capture of a.e", "4 packets were not captured"),
        (
            "group addressed frames of one link",
            "the kernel warned of 3 that hwsim dropped while that link was being stopped",
        ),
        ("frames by link", "2 frames on the medium were not counted"),
    ]


def test_drops_are_a_doubt_only_where_a_flow_passes() -> None:
    hosts = [f"h{n}" for n in range(300)]
    star = Topology.model_validate(
        {
            "name": "star",
            "nodes": {"sw": {"bridge": {}}, **{h: {} for h in hosts}},
            "links": [{"ends": [f"{h}:eth0", f"sw:p{n}"]} for n, h in enumerate(hosts)],
            "workloads": {"rtt": {"ping": {"from": "h1", "to": "h2", "seconds": 1}}},
        }
    )
    names = [*(f"{h}.eth0" for h in hosts), *(f"sw.p{n}" for n in range(300)), "h7.br.1"]
    figures = {f"{name}.rx_dropped": Measured(280, "packet") for name in names}
    text = "1120 packets dropped (rx_dropped), and by no queue of the interface, most of them, 280, at the first"
    assert said(ticks(*steady(-1, 10)), metrics=figures, topology=star) == [
        ("flows through sw.p2, sw.p1, h2.eth0 and 1 more interface", text)
    ]
    several = star.model_copy(update={"workloads": {}})
    assert len(said(ticks(*steady(-1, 10)), metrics=figures, topology=several)) == 1, "any may be used by hand"


def test_a_bound_that_was_felt_or_not_held_is_a_doubt() -> None:
    held = {
        "memory": Held("1gb", by="cgroup", killed=2),
        "cpu": Held("1", by="cgroup", throttled_s=1.5),
        "pids": Held("9", unenforced="there are no cgroups"),
    }
    assert said(ticks(*steady(-1, 10)), manifest=Manifest(resources=held)) == [
        ("every figure", "resources.pids: 9 is not enforced on this machine: there are no cgroups"),
        ("everything", "the kernel killed 2 processes of the lab (resources.memory: 1gb)"),
        ("every rate and delay", "the lab waited 1.50 s for processors (resources.cpu: 1)"),
    ]


def test_datagrams_that_found_a_buffer_full_are_counted_in_both_families() -> None:
    snmp = "Udp: InDatagrams NoPorts InErrors RcvbufErrors\nUdp: 1 2 3 55\nUdpLite: RcvbufErrors\nUdpLite: 7\n"
    assert sampler.buffer_errors(snmp) == 55
    assert sampler.buffer_errors("Ip6InReceives 3\nUdp6RcvbufErrors               	8\nUdpLite6RcvbufErrors 9\n") == 8


@pytest.mark.parametrize(
    ("rows", "gap"),
    [
        ([(0.0, 0.1, 5), (0.1, 0.2, 5)], (0, 0)),
        ([(0.0, 0.1, 5), (0.1, 0.2, 0), (0.2, 0.3, 0), (0.3, 0.4, 5)], (0.2, 0.1)),
        ([(0.0, 0.1, 5), (0.1, 3.2, 5), (3.2, 3.3, 5)], (3.0, 0.1)),  # it did not run
        ([(0.0, 0.1, 0), (0.1, 3.2, 5), (3.2, 3.3, 0)], (3.1, 0.0)),  # and got nothing before
        ([(0.0, 0.15, 5), (0.15, 0.34, 5)], (0, 0)),  # a busy machine
        ([(0.0, 0.1, 5), (0.1, 9.9, 0)], (9.8, 0.1)),
    ],
)
def test_a_gap_of_iperf3_counts_the_time_in_which_it_did_not_run(
    rows: list[tuple[float, float, int]], gap: tuple[float, float]
) -> None:
    assert longest([Part(*row) for row in rows], 0.1) == pytest.approx(gap)


def test_a_ping_that_did_not_run_is_told_from_one_whose_answers_were_lost(tmp_path: Path) -> None:
    work = Ping.model_validate({"from": "a", "to": "b", "interval": "200ms"})
    (tmp_path / "a").mkdir()

    def doubts(*rows: tuple[int, float, float]) -> list[str]:
        text = "".join(
            f"[{1795821649 + t:.6f}] 64 bytes from 10.0.0.1: icmp_seq={n} ttl=64 time={ms:g} ms\n" for n, t, ms in rows
        )
        (tmp_path / "a/p.ping.txt").write_text(text)
        return [seen for _, _, seen in work.doubts("p", Recorded(tmp_path))]

    assert doubts((1, 0.0, 10), (2, 0.2, 10), (12, 2.2, 10), (13, 2.4, 10)) == []
    assert doubts((1, 0.01, 10), (2, 2.2, 2000), (3, 2.21, 1800)) == [], "slow answers"
    (seen,) = doubts((1, 0.0, 10), (2, 2.2, 10), (3, 2.4, 10))
    assert seen.startswith("ping did not send for 2.0 s longer")


def test_packets_keep_their_times_when_the_clock_is_set_while_they_come() -> None:
    """Three packets of a batch: two before the clock goes back by 200 s, one after."""
    head, ms = receiver._HEAD, 1_000_000
    true = [10_000 * ms + n * ms for n in range(3)]
    rows = bytearray(head.pack(1, 5) + bytes(PACKET.size))  # of a batch before
    for came, set_back in zip(true, (0, 0, 200_000 * ms), strict=True):
        rows += head.pack((came - set_back) & receiver._WORD, 100) + bytes(PACKET.size)
    receiver.mend(rows, head.size + PACKET.size, -200_000 * ms, true[0] - 5 * ms, true[2] + 5 * ms)
    size = head.size + PACKET.size
    assert [struct.unpack_from("!Q", rows, at)[0] for at in range(0, len(rows), size)] == [1, *true]


def test_both_clocks_are_read_at_one_moment() -> None:
    first = receiver.ahead()
    assert abs(receiver.ahead() - first) < receiver._SET
    moment = sampler._moment()
    assert moment["time"] - moment["t"] == pytest.approx(first / 1e9, abs=validity.STEP)
