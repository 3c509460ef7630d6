"""Multicast through routers of this kernel: every packet to who joined, none to others, and what is lost is seen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from testbed.programs.multicast import packets as records
from tests.conftest import ROOT, Need, testbed
from tests.kernel.test_rootless import User, left, user

__all__ = ["user"]
pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("measure")]  # one at a time: they measure
EXPERIMENT = str(ROOT / "experiments/multicast-tree.yaml")

ROUTED = """
name: routed
nodes:
  s: {}
  t: {}
  r: {router: {multicast: true}}
  sw: {bridge: {}}
  a: {}
  b: {}
  c: {}
links:
  - {ends: [s:eth0, r:s]}
  - {ends: [t:eth0, r:t]}
  - {name: last, ends: [r:lan, sw:p0]}
  - {ends: [a:eth0, sw:p1]}
  - {ends: [b:eth0, sw:p2]}
  - {ends: [c:eth0, sw:p3]}
"""


@pytest.fixture(autouse=True)
def _needs(need: Need) -> None:
    need("mroute", "mroute6", "smcroute")


def ran(tmp_path: Path, name: str, rest: str, status: int = 0) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Run the topology above with workloads and so on; return its folder and metrics."""
    (tmp_path / "routed.yaml").write_text(ROUTED + rest)
    done = testbed("run", "routed.yaml", "--name", name, cwd=tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    folder = (tmp_path / "results/routed/latest").resolve()
    return folder, json.loads((folder / "metrics.json").read_text())


def test_the_experiment_holds(tmp_path: Path, name: str) -> None:
    done = testbed("run", EXPERIMENT, "--name", name, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = (tmp_path / "results/multicast-tree/latest").resolve()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["video.sent_packets"]["value"] > 2000
    # The kernel counted the same packets: the source's switch port saw each once, whoever listens.
    sent = sum(metrics[f"{w}.sent_packets"]["value"] for w in ("video", "video6", "radio", "late"))
    assert sent <= metrics["source.eth0.tx_packets"]["value"] <= sent + 50
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files >= {
        "source/video.sent", "source/video.sender.json", "w1/video.packets", "w1/video.receiver.json",
        "core/smcroute.conf", "core/smcrouted.log",
    }  # fmt: skip
    packets = records.arrivals((folder / "w1/video.packets").read_bytes(), records.stream("video"))
    assert [p.sequence for p in packets] == list(range(len(packets)))
    assert json.loads((folder / "manifest.json").read_text())["tools"]["smcroute"].startswith("SMCRoute")


def test_who_joins_one_source_gets_nothing_of_another(tmp_path: Path, name: str) -> None:
    folder, metrics = ran(
        tmp_path,
        name,
        "workloads:\n"
        "  one: {multicast: {source: s, receivers: [a], group: 239.1.1.1, port: 5000, rate: 1mbit, seconds: 1}}\n"
        "  two: {multicast: {source: t, receivers: [b, {node: c, any_source: true}], group: 239.1.1.1, port: 5000,\n"
        "        rate: 1mbit, seconds: 1}}\n"
        "  six: {multicast: {source: s, receivers: [a], group: 'ff1e::1', port: 5000, rate: 1mbit, seconds: 1}}\n"
        "  sit: {multicast: {source: t, receivers: [b, {node: c, any_source: true}], group: 'ff1e::1', port: 5000,\n"
        "        rate: 1mbit, seconds: 1}}\n",
    )
    for first, second in (("one", "two"), ("six", "sit")):
        assert metrics[f"{first}.a.loss_pct"]["value"] == metrics[f"{second}.b.loss_pct"]["value"] == 0
        # Both streams pass a, b and c: they are on one switch. c, which takes all sources, has both.
        got = {n: (folder / n / f"{w}.packets").read_bytes() for n, w in (("a", first), ("b", second), ("c", second))}
        streams = {
            n: [len(records.arrivals(data, records.stream(w))) for w in (first, second)] for n, data in got.items()
        }
        sent = [metrics[f"{w}.sent_packets"]["value"] for w in (first, second)]
        assert streams == {"a": [sent[0], 0], "b": [0, sent[1]], "c": sent}


def test_a_link_slower_than_the_stream_loses_what_it_can_not_carry(tmp_path: Path, name: str) -> None:
    _, metrics = ran(
        tmp_path,
        name,
        "workloads:\n"
        "  v: {multicast: {source: s, receivers: [a], group: 232.1.1.1, rate: 4mbit, seconds: 4}}\n"
        "events:\n  - {at: 0s, link: last, set: {rate: 2mbit, queue: {limit: 8kb}}}\n"
        "checks:\n  - {metric: v.a.loss_pct, max: 5}\n",
        status=1,
    )
    # 2 Mbit/s of frames, of which 42 of 1358 bytes are headers; the first packets find the bucket full.
    assert 40 < metrics["v.a.loss_pct"]["value"] < 60
    assert 1.6 < metrics["v.a.goodput_mbps"]["value"] < 2.4
    assert metrics["v.a.lost_outside_gap_packets"]["value"] > 100
    assert metrics["v.a.delay_max_ms"]["value"] > 10, "they wait in the queue"
    assert metrics["v.a.socket_drops"]["value"] == 0


@pytest.mark.parametrize("group", ["232.1.1.1", "ff3e::8000:1"])
def test_a_link_that_is_down_for_a_second_is_a_gap_and_nothing_else_is_lost(
    tmp_path: Path, name: str, group: str
) -> None:
    _, metrics = ran(
        tmp_path,
        name,
        "workloads:\n"
        f"  v: {{multicast: {{source: s, receivers: [a, b], group: '{group}', rate: 1mbit, seconds: 4}}}}\n"
        "events:\n  - {at: 1s, link: last, down: true}\n  - {at: 2s, link: last, down: false}\n",
    )
    for node in ("a", "b"):
        assert 0.8 < metrics[f"v.{node}.gap_s"]["value"] < 2
        assert metrics[f"v.{node}.gap_at_s"]["value"] == pytest.approx(1, abs=0.2)
        assert metrics[f"v.{node}.lost_packets"]["value"] > 50
        assert metrics[f"v.{node}.lost_outside_gap_packets"]["value"] == 0


def test_who_joins_and_leaves_meanwhile_gets_what_is_sent_meanwhile(tmp_path: Path, name: str) -> None:
    folder, metrics = ran(
        tmp_path,
        name,
        "workloads:\n"
        "  v: {multicast: {source: s, receivers: [{node: a, at: 1s, seconds: 1}, {node: b, at: 2s}],\n"
        "      group: 232.1.1.1, rate: 1mbit, seconds: 3}}\n",
    )
    for node, share in (("a", 1 / 3), ("b", 1 / 3)):
        got = metrics[f"v.{node}.received_packets"]["value"]
        assert got / metrics["v.sent_packets"]["value"] == pytest.approx(share, abs=0.15)
        assert metrics[f"v.{node}.lost_packets"]["value"] == 0
        assert 0 < metrics[f"v.{node}.join_ms"]["value"] < 1000
    its = json.loads((folder / "a/v.receiver.json").read_text())
    assert (its["left"] - its["joined"]) / 1e9 == pytest.approx(1, abs=0.3)


def test_the_kernel_forwards_what_was_planned_and_a_change_in_place_is_refused(tmp_path: Path, name: str) -> None:
    topology = str(ROOT / "topologies/multicast-tree.yaml")
    done = testbed("up", topology, "--name", name)
    assert done.returncode == 0, done.stderr
    shown = testbed("exec", name, "core", "--", "ip", "mroute", "show").stdout.split()
    assert shown[:5] == ["(10.0.1.1,232.1.1.1)", "Iif:", "source", "Oifs:", "west"]
    assert "east" in shown
    done = testbed("up", topology, "--name", name, "--set", "workloads.video.multicast.group=232.9.9.9")
    assert done.returncode == 3
    assert "--recreate" in done.stderr


def test_a_routing_daemon_that_dies_in_a_run_fails_it(tmp_path: Path, name: str) -> None:
    _, metrics = ran(
        tmp_path,
        name,
        "workloads:\n  v: {multicast: {source: s, receivers: [a], group: 232.1.1.1, rate: 1mbit, seconds: 2}}\n"
        "events:\n  - {at: 1s, node: r, command: [sh, -c, 'kill -9 $(cat /run/smcroute-r.pid)']}\n",
        status=3,
    )
    verdict = json.loads((tmp_path / "results/routed/latest/verdict.json").read_text())
    assert any("[r] smcrouted ended with signal SIGKILL" in f for f in verdict["failures"])
    assert metrics["v.a.gap_s"]["value"] > 0.5, "the kernel forgot the routes with the daemon's socket"


def test_a_source_sends_from_one_processor_so_that_nothing_overtakes(tmp_path: Path, name: str) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one processor")
    look = "for p in /proc/[0-9]*; do grep -qx sender $p/comm && grep Cpus_allowed_list $p/status; done; true"
    command = json.dumps(["sh", "-c", look])
    folder, _ = ran(
        tmp_path,
        name,
        "workloads:\n"
        "  v: {multicast: {source: s, receivers: [a], group: 232.1.1.1, rate: 1mbit, seconds: 2}}\n"
        f"  look: {{command: {{node: s, argv: {command}, at: 1s}}}}\n",
    )
    (row,) = (folder / "s/look.command.out").read_text().splitlines()
    assert row.split()[1].isdecimal(), "one, and neither a range nor a list"


def test_a_lab_of_one_family_has_multicast_of_that_one(tmp_path: Path, name: str) -> None:
    rest = "workloads:\n  v: {multicast: {source: s, receivers: [a], group: 'ff3e::8000:1', rate: 1mbit, seconds: 1}}\n"
    (tmp_path / "six.yaml").write_text(ROUTED.replace("name: routed", "name: six\nfamilies: [ipv6]") + rest)
    done = testbed("run", "six.yaml", "--name", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "results/six/latest/metrics.json").read_text())
    assert metrics["v.a.received_packets"]["value"] == metrics["v.sent_packets"]["value"] > 50


def test_a_user_who_is_not_root_has_multicast_as_well(user: User, name: str) -> None:
    done = user.testbed("run", EXPERIMENT, "--name", name)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((user.home / "results/multicast-tree/latest/metrics.json").read_text())
    assert metrics["video.w1.received_packets"]["value"] == metrics["video.sent_packets"]["value"] > 2000
    assert left(name) == {}
