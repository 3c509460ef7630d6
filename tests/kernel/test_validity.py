"""What stops a program or the whole lab is in the report: as a doubt, and in the figures that it touches."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import testbed, where

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("measure")]  # one at a time: they measure

TOPOLOGY = """
name: stalls
nodes: {a: {}, b: {}}
links: [{ends: [a:eth0, b:eth0], rate: 10mbit}]
workloads:
  bulk: {iperf3: {from: a, to: b, seconds: 15}}
  rtt: {ping: {from: a, to: b, seconds: 15}}
  mc: {multicast: {source: a, receivers: [b], group: 232.1.1.1, rate: 200kbit, seconds: 15}}
"""
_STOP, _LONG = 1.2, 3.0  # seconds: of iperf3 the longest, so that its gap is that of this stop


def programs(lab: str) -> dict[int, str]:
    """The processes of a lab by their number: its holder, whose name begins with the lab's, and all below it."""
    names, parents = {}, {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            head, _, rest = Path("/proc", entry, "stat").read_text().rpartition(") ")
        except OSError:
            continue  # it has ended
        names[int(entry)], parents[int(entry)] = head.partition(" (")[2], int(rest.split()[1])
    found = {pid for pid, name in names.items() if name == f"testbed:{lab}"[:15]}
    while below := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= below
    return {pid: names[pid] for pid in found}


def stopped(chosen: dict[int, str], seconds: float = _STOP) -> None:
    for pid in chosen:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in chosen:
        os.kill(pid, signal.SIGCONT)


def awaited(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which one program after the other, and then all of them, do not run for a while."""
    root = tmp_path_factory.mktemp("stalls")
    lab = f"s{os.getpid()}"
    (root / "stalls.yaml").write_text(TOPOLOGY)
    words = (sys.executable, "-m", "testbed", "run", "stalls.yaml", "--name", lab, "--machine", "here")
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        awaited(lambda: {"sender", "ping", "iperf3"} <= set(programs(lab).values()) or running.poll() is not None)
        time.sleep(1)  # what is measured begins
        for names in ({"iperf3"}, {"ping"}, {"sender"}, {"sampler"}):
            chosen = {pid: name for pid, name in programs(lab).items() if name in names}
            stopped(chosen, _LONG if names == {"iperf3"} else _STOP)
            time.sleep(0.7)
        stopped(programs(lab))
        said, _ = running.communicate(timeout=120)
    assert running.returncode == 0, said
    return (root / "results/stalls/latest").resolve()


def test_each_program_that_did_not_run_is_a_doubt_and_the_worst_comes_first(folder: Path) -> None:
    if where():
        pytest.skip("this is about processes of this machine")
    found = [(d["what"], d["seen"]) for d in json.loads((folder / "verdict.json").read_text())["validity"]]
    first, seen = found[0]
    assert first == "every rate, delay and gap"
    assert seen.startswith("the machine stood still: neither sampler nor holder ran for 1.")
    for what, text in (
        ("counters and rates by the sample", "the sampler did not run for 1."),
        ("goodput, gap and RTT of bulk", "its client in a did not run for "),
        ("goodput, gap and RTT of bulk", "its server in b did not run for "),
        ("loss and RTT of rtt", "ping did not send for 1."),
        ("the rate and gaps of mc", "packets were not sent: the source was too late for them"),
    ):
        assert [w for w, t in found if w == what and text in t], found


def test_the_time_in_which_a_receiver_did_not_run_is_its_gap_as_the_interface_saw_it(folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    gap, began = metrics["bulk.gap_s"]["value"], metrics["bulk.gap_at_s"]["value"]
    assert 2.5 < gap < 4
    # By the counters: iperf3's sender stood still as well. What was under way came, and then only what others sent.
    rates = [v for t, v in metrics["b.eth0.rx_mbps"]["series"] if began < t < began + gap + 0.3]
    assert min(rates) < 1 < metrics["bulk.goodput_mbps"]["value"]
    assert metrics["mc.b.gap_s"]["value"] == pytest.approx(_STOP, abs=0.5)


@pytest.mark.quiet
def test_a_run_in_which_nothing_was_stopped_has_no_such_doubt(tmp_path: Path, name: str) -> None:
    (tmp_path / "quiet.yaml").write_text(TOPOLOGY.replace("seconds: 15", "seconds: 3"))
    done = testbed("run", "quiet.yaml", "--name", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    verdict = json.loads((tmp_path / "results/stalls/latest/verdict.json").read_text())
    found = [d for d in verdict["validity"] if "did not run" in d["seen"] or "stood still" in d["seen"]]
    assert found == []
    rows = (tmp_path / "results/stalls/latest/machine.jsonl").read_text().splitlines()
    times = [json.loads(row)["t"] for row in rows]
    assert all(b - a < 0.75 for a, b in itertools.pairwise(times))


def test_datagrams_that_find_the_buffer_of_iperf3_full_are_no_loss_of_the_network(tmp_path: Path, name: str) -> None:
    """Its server stands still while one second of packets comes, more than its buffer holds."""
    lab = {
        "name": "full",
        "nodes": {"a": {}, "b": {}},
        "links": [{"ends": ["a:eth0", "b:eth0"]}],
        "workloads": {
            "flood": {
                "iperf3": {"from": "a", "to": "b", "protocol": "udp", "rate": "40mbit", "length": "500b", "seconds": 4}
            }
        },
    }
    (tmp_path / "full.yaml").write_text(json.dumps(lab))
    words = (sys.executable, "-m", "testbed", "run", "full.yaml", "--name", name, "--machine", "here")
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        awaited(lambda: list(programs(name).values()).count("iperf3") == 2 or running.poll() is not None)
        time.sleep(1)
        server = min(pid for pid, program in programs(name).items() if program == "iperf3")  # the first
        stopped({server: "iperf3"})
        said, _ = running.communicate(timeout=120)
    assert running.returncode == 0, said
    found = json.loads((tmp_path / "results/full/latest/verdict.json").read_text())["validity"]
    assert [d for d in found if d["what"] == "the loss of UDP flows to b" and "buffer" in d["seen"]], found


def test_packets_that_the_kernels_queue_has_no_room_for_are_a_doubt_and_interfaces_count_as_many(
    tmp_path: Path, name: str
) -> None:
    """A broadcast to 1020 ports of a bridge: a processor's queue takes 1000 (net.core.netdev_max_backlog)."""
    hosts = [f"h{n}" for n in range(1020)]
    shout = ["sh", "-c", "ping -b -c 20 -i 0.05 -W 1 -I eth0 255.255.255.255; true"]
    lab = {
        "name": "flood",
        "families": ["ipv4"],
        "nodes": {"sw": {"bridge": {}}, **{host: {} for host in hosts}},
        "links": [{"ends": [f"{host}:eth0", f"sw:p{n}"], "rate": "100mbit"} for n, host in enumerate(hosts)],
        "samples": {"every": "2s"},
        "workloads": {"shout": {"command": {"node": "h0", "argv": shout}}},
    }
    (tmp_path / "flood.yaml").write_text(json.dumps(lab))
    done = testbed("run", "flood.yaml", "--name", name, "--machine", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results/flood/latest"
    metrics = {k: m["value"] for k, m in json.loads((folder / "metrics.json").read_text()).items()}
    lost = metrics["machine.softnet_dropped"]
    # Other labs of this machine may lose some as well.
    assert 20 <= sum(v for k, v in metrics.items() if k.startswith("sw.p") and k.endswith(".tx_dropped")) <= lost
    doubts = [(d["what"], d["seen"]) for d in json.loads((folder / "verdict.json").read_text())["validity"]]
    assert "every flow of the machine" in [what for what, _ in doubts]
    grouped = [what for what, seen in doubts if "and by no queue of the interface" in seen]
    assert [" more interfaces" in what for what in grouped] == [True, True], "one of senders, one of receivers"


def test_what_commands_and_programs_did_to_the_links_is_named(tmp_path: Path) -> None:
    file = tmp_path / "drift.yaml"
    file.write_text(
        "name: drift\nfamilies: [ipv4]\n"
        "nodes: {a: {commands: [[tc, qdisc, del, dev, eth0, root]]}, b: {}}\n"
        "links: [{ends: [a:eth0, b:eth0], rate: 10mbit}]\nduration: 1s\n"
        "workloads: {flush: {command: {node: b, argv: [ip, addr, flush, dev, eth0]}}}\n"
    )
    done = testbed("run", str(file), "--results", str(tmp_path / "r"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r/drift/latest/verdict.json").read_text())["validity"]
    assert [d for d in found if d["what"].startswith("flows through")] == [
        {
            "what": "flows through a.eth0",
            "seen": "when the run began, it had no shaping, although the file asks for one",
        },
        {
            "what": "flows through b.eth0",
            "seen": "when the run ended, it lacked an address of the plan, and no event of the file did that",
        },
    ]
