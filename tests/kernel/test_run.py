"""A run and its results folder: complete, judged, and derived again with the same outcome."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4
from xml.etree import ElementTree

import pytest

from tests.conftest import MACHINE, ROOT, testbed, where

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("measure")]  # one at a time: they measure

TOPOLOGY = """
name: short
nodes: {a: {}, b: {}, c: {router: {}}}
links:
  - {name: near, ends: [a:eth0, c:eth0], rate: 40mbit}
  - {ends: [c:eth1, b:eth0], rate: 40mbit}
workloads:
  bulk: {iperf3: {from: a, to: b, seconds: 4, congestion: cubic}}
  echo: {ping: {from: a, to: b, seconds: 2, interval: 100ms, family: ipv4}}
  hello: {command: {node: b, argv: [echo, hello], at: 1s}}
capture: ["a:*", {interfaces: "b:eth0", snaplen: 96, filter: icmp}]
events:
  - {at: 2s, link: near, set: {rate: 10mbit}}
checks:
  - {metric: bulk.goodput_mbps, min: 10, max: 40}
  - {metric: echo.loss_pct, equals: 0}
  - {metric: hello.nothing, present: false}
"""


def test_tests_that_measure_are_one_group(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there is one process")
    assert request.node.nodeid.endswith("@measure")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    text = TOPOLOGY.replace("  - {metric: hello.nothing, present: false}\n", "")
    if MACHINE in os.environ:  # an emulated processor; a queue of the first rate must not last as long as ping waits
        text = text.replace("0mbit", "mbit").replace("min: 10, max: 40", "min: 1, max: 4")
        text = text.replace("set: {rate: 1mbit}", "set: {rate: 2mbit}")
    (root / "short.yaml").write_text(text)
    done = testbed("run", "short.yaml", "--name", f"short-{uuid4().hex[:8]}", cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return (root / "results/short/latest").resolve()


def test_the_folder_has_inputs_intent_circumstances_and_raw_data(folder: Path) -> None:
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names >= {
        "topology.yaml", "effective.yaml", "plan.txt", "plan.json", "manifest.json",
        "commands.log", "dmesg.log", "run.json", "machine.jsonl",
        "a/samples.jsonl", "b/samples.jsonl", "a/bulk.client.json", "b/bulk.server.json", "a/echo.ping.txt",
        "a/eth0.pcapng", "b/eth0.pcapng", "b/hello.command.out", "metrics.json", "verdict.json", "junit.xml",
    }  # fmt: skip
    assert (folder / "b/hello.command.out").read_text() == "hello\n"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kernel"]["release"]
    assert manifest["tools"]["iperf3"].startswith("iperf")
    assert manifest["ended"] > manifest["began"]


def test_no_node_can_have_the_name_of_a_file_of_the_run(folder: Path, tmp_path: Path) -> None:
    files = [f.name for f in folder.iterdir() if f.is_file()]
    assert len(files) >= 10
    (tmp_path / "lab.yaml").write_text(f"name: lab\nnodes: {{{', '.join(f'{f}: {{}}' for f in files)}}}\n")
    done = testbed("check", str(tmp_path / "lab.yaml"))
    assert done.returncode == 2
    assert done.stderr.count("can't be the name of a node's folder in the results") == len(files)


def test_what_was_performed_is_what_was_planned(folder: Path) -> None:
    performed = [row.partition(" ")[2] for row in (folder / "commands.log").read_text().splitlines()]
    planned = [row for row in (folder / "plan.txt").read_text().splitlines() if row and not row.startswith("#")]
    assert sorted(performed) == sorted(planned)


def test_the_effective_file_runs_again(folder: Path, tmp_path: Path, name: str) -> None:
    done = testbed("run", str(folder / "effective.yaml"), "--name", name, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    again = tmp_path / "short/latest"
    assert (again / "plan.txt").read_text() == (folder / "plan.txt").read_text()
    assert (again / "effective.yaml").read_text() == (folder / "effective.yaml").read_text()


def test_steps_have_the_numbers_of_the_plan(folder: Path) -> None:
    rows = (folder / "plan.txt").read_text().partition("# run\n")[2].splitlines()
    planned, run = (json.loads((folder / file).read_text()) for file in ("plan.json", "run.json"))
    assert run["events"]
    assert [rows[e["n"]] for e in run["events"]] == [e["step"] for e in run["events"]]
    assert {str(e["n"]) for e in run["events"]} == set(planned["steps"])


def test_an_event_takes_effect_at_its_time_and_the_series_show_it(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text())
    changed = [e["t"] for e in run["events"] if "tc qdisc replace dev eth0" in e["step"]]
    assert len(changed) == 2, "both directions"
    assert all(2.0 <= t < 2.1 for t in changed)
    series = json.loads((folder / "metrics.json").read_text())["bulk.goodput_mbps"]["series"]
    before = [v for t, v in series if 1.5 < t < 2.5]  # the second second, which is iperf3's own
    after = [v for t, v in series if t > 3.5]
    assert before
    assert after
    assert min(before) > 30
    assert max(after) < 11


def test_a_capture_has_every_packet_from_the_first_to_the_last(folder: Path) -> None:
    first, second = folder / "a/eth0.pcapng", folder / "b/eth0.pcapng"
    metrics = json.loads((folder / "metrics.json").read_text())
    seen = tshark(first, "-Y", "icmp")
    assert len(seen) == metrics["echo.sent_packets"]["value"] + metrics["echo.received_packets"]["value"] == 40
    assert metrics["a.eth0.capture_drops"]["value"] == 0
    # The connections' first and last packets are there: both SYNs, and a FIN of each.
    assert len(tshark(first, "-Y", "tcp.flags.syn == 1 && tcp.flags.ack == 0")) == 2
    assert len(tshark(first, "-Y", "tcp.flags.fin == 1")) >= 2
    # The other capture has a filter and a snap length.
    rows = [row.split("\t") for row in tshark(second, "-T", "fields", "-e", "frame.cap_len", "-e", "ip.proto")]
    assert len(rows) == 40
    assert {protocol for _, protocol in rows} == {"1"}
    assert max(int(length) for length, _ in rows) <= 96


def tshark(file: Path, *options: str) -> list[str]:
    """Return the lines that tshark prints of a capture."""
    done = subprocess.run(("tshark", "-r", str(file), *options), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_samples_come_at_least_once_a_second_from_every_node(folder: Path) -> None:
    for node in ("a", "b", "c"):
        times = [json.loads(row)["t"] for row in (folder / node / "samples.jsonl").read_text().splitlines()]
        assert len(times) > 8
        assert max(b - a for a, b in itertools.pairwise(times)) < 1


def test_the_report_made_again_is_the_same(folder: Path) -> None:
    derived = ("metrics.json", "verdict.json", "junit.xml")
    before = {n: (folder / n).read_bytes() for n in derived}
    for n in derived:
        (folder / n).unlink()
    done = testbed("report", str(folder))
    assert done.returncode == 0, done.stderr
    assert {n: (folder / n).read_bytes() for n in derived} == before


def test_a_check_turned_around_fails_the_report_and_the_junit_file(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(("cp", "-r", str(folder), str(copy)), check=True)
    text = (copy / "effective.yaml").read_text()
    (copy / "effective.yaml").write_text(re.sub(r"min: \d+, max: \d+", "min: 40", text))
    done = testbed("report", str(copy))
    assert done.returncode == 1
    assert "FAIL  bulk.goodput_mbps  >= 40" in done.stdout
    assert "1 of 2 checks failed" in done.stderr
    suite = ElementTree.parse(copy / "junit.xml").getroot()
    assert suite.get("failures") == "1"
    assert suite.findall("testcase/failure")


def test_a_workload_that_fails_ends_the_run_with_status_3_and_keeps_the_results(tmp_path: Path, name: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(
        "name: broken\nnodes: {a: {}}\nworkloads:\n"
        "  bad: {command: {node: a, argv: [sh, -c, 'echo it went wrong >&2; exit 7']}}\n"
        "  good: {command: {node: a, argv: [echo, fine]}}\n"
    )
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "r"))
    assert done.returncode == 3
    assert "[a] bad.command ended with status 7" in done.stderr
    assert "it went wrong" in done.stdout
    folder = tmp_path / "r/broken/latest"
    assert (folder / "a/good.command.out").read_text() == "fine\n"
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "error"


def test_a_log_with_control_characters_is_text_in_the_junit_file(tmp_path: Path, name: str) -> None:
    said = r"\033[31mFAILED\033[0m \033]0;TITLE\007 bell \000 nul \377 \357\277\277 ]]> <x>&\n"
    work = {"t": {"command": {"node": "a", "argv": ["sh", "-c", f"printf '{said}' >&2; exit 1"]}}}
    (tmp_path / "t.yaml").write_text(json.dumps({"name": "loud", "nodes": {"a": {}}, "workloads": work}))
    done = testbed("run", "t.yaml", "--name", name, cwd=tmp_path)
    assert done.returncode == 3
    for file in ("latest/junit.xml", "junit.xml"):
        error = ElementTree.parse(tmp_path / "results/loud" / file).find(".//error")
        assert error is not None
        assert "\\x1b[31mFAILED" in (error.text or "")
        assert "]]> <x>&" in (error.text or "")


def test_a_command_that_does_not_end_is_killed_and_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(
        "name: endless\nnodes: {a: {}}\nworkloads:\n  stuck: {command: {node: a, argv: [sleep, '1000'], seconds: 1}}\n"
    )
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "r"))
    assert done.returncode == 3
    assert "[a] stuck.command did not end within 1 s" in done.stderr


def test_a_missing_feature_is_named_with_its_cure_and_nothing_is_created(tmp_path: Path, name: str) -> None:
    from testbed import features
    from testbed.machines.probe import here

    (netem,) = here.probe([features.QDISCS["netem"]])
    if netem.present:
        pytest.skip("this kernel has netem: nothing is missing")
    file = str(ROOT / "topologies/two-hosts.yaml")
    delayed = ("--set", "links.cable.delay=10ms")
    done = testbed("run", file, "--name", name, "--results", str(tmp_path / "r"), "--machine", "here", *delayed)
    assert done.returncode == 4
    assert "feature netem" in done.stderr
    assert "modprobe sch_netem" in done.stderr
    assert not (tmp_path / "r").exists()
    assert testbed("status", name).returncode == 3
    assert testbed("doctor", file).returncode == 0
    done = testbed("doctor", "--json")
    rows = {r["feature"]: r["present"] for r in json.loads(done.stdout)["features"]}
    assert rows["netem"] is False
    assert rows["tbf"] is True


def test_a_matrix_makes_a_run_for_each_of_its_values(tmp_path: Path, name: str) -> None:
    (tmp_path / "base.yaml").write_text(
        "name: grid\nnodes: {a: {}, b: {}}\nlinks: [{name: wire, ends: [a:eth0, b:eth0]}]\n"
        "workloads: {echo: {ping: {from: a, to: b, seconds: 0.2, interval: 100ms}}}\n"
        "checks: [{metric: echo.loss_pct, equals: 0}]\n"
    )
    (tmp_path / "exp.yaml").write_text(
        "name: grid\ntopology: base.yaml\nmatrix: {links.wire.rate: [1mbit, 2mbit], checks.0.equals: [0, 50]}\n"
    )
    done = testbed("run", "exp.yaml", "--name", name, "--json", cwd=tmp_path)
    assert done.returncode == 1, "half of the runs expect 50 % loss of a link that loses nothing"
    reports = json.loads(done.stdout)
    assert [r["verdict"] for r in reports] == ["passed", "failed"] * 2
    assert len({r["folder"] for r in reports}) == 4
    plans = [(Path(r["folder"]) / "plan.txt").read_text() for r in reports]
    assert ["rate 1000000bit" in p for p in plans] == [True, True, False, False]
    for r in reports:  # each folder knows which case it is
        assert testbed("report", r["folder"]).returncode == {"passed": 0, "failed": 1}[r["verdict"]]


def test_figures_that_the_host_limited_are_marked(tmp_path: Path, name: str) -> None:
    spin = "import time; e = time.monotonic() + 2.5\nwhile time.monotonic() < e: pass"
    file = tmp_path / "t.yaml"
    works: dict[str, dict[str, dict[str, object]]] = {
        f"spin{n}": {"command": {"node": "a", "argv": ["python3", "-c", spin]}} for n in range(os.cpu_count() or 1)
    }
    works["flood"] = {"iperf3": {"from": "a", "to": "b", "protocol": "udp", "rate": "20mbit", "seconds": 2}}
    # A queue too short for its traffic that the topology knows nothing of: a command made it.
    tiny = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "3kb", "limit", "6kb"]
    nodes = {"a": {"commands": [tiny]}, "b": {}}
    file.write_text(
        json.dumps({"name": "doubt", "nodes": nodes, "links": [{"ends": ["a:eth0", "b:eth0"]}], "workloads": works})
    )
    done = testbed("run", str(file), "--name", name, "--results", str(tmp_path / "r"))
    assert done.returncode == 0, done.stderr
    verdict = json.loads((tmp_path / "r/doubt/latest/verdict.json").read_text())
    doubts = {d["what"]: d["seen"] for d in verdict["validity"]}
    assert "busy in the busiest second" in doubts["every rate and delay"]
    assert "where no shaping was asked for" in doubts["flows through a.eth0"]
    assert verdict["verdict"] == "no checks"


def test_a_server_that_is_still_writing_when_its_client_has_ended_is_left_to_end(tmp_path: Path, name: str) -> None:
    slow = tmp_path / "bin/iperf3"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ntrap "exit 99" TERM\n{shutil.which("iperf3")} "$@"\n[ "$1" != -s ] || sleep 0.7\n')
    slow.chmod(0o755)
    env = {**os.environ, "PATH": f"{slow.parent}:{os.environ['PATH']}"}
    works = {"bulk": {"iperf3": {"from": "a", "to": "b", "seconds": 1, "rate": "10mbit"}}}
    lab = {"name": "slow", "nodes": {"a": {}, "b": {}}, "links": [{"ends": ["a:eth0", "b:eth0"]}], "workloads": works}
    (tmp_path / "slow.yaml").write_text(json.dumps(lab))
    done = testbed("run", "slow.yaml", "--name", name, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "results/slow/latest/run.json").read_text())
    assert {p["name"]: p["status"] for p in run["processes"]}["bulk.server"] == 0


@pytest.mark.parametrize("size", ["4k", "40k"], ids=["the plan", "the logs"])
def test_a_disk_that_is_full_ends_the_run_with_the_name_of_what_could_not_be_written(
    size: str, tmp_path: Path, name: str
) -> None:
    _fill(size, tmp_path, name)


def test_a_disk_that_a_capture_fills_ends_the_run_with_its_name(tmp_path: Path, name: str) -> None:
    _fill("4m", tmp_path, name)


def _fill(size: str, tmp_path: Path, name: str) -> None:
    short = ("workloads.bulk.iperf3.seconds=2", "workloads.rtt.ping.seconds=2", "capture=['client:*']")
    file = str(ROOT / "topologies/two-hosts.yaml")
    words = [sys.executable, "-m", "testbed", "run", file, "--name", name, "--results", str(tmp_path), *where()]
    words += [w for s in short for w in ("--set", s)]
    script = f'mount -t tmpfs -o size={size} small "{tmp_path}" && exec "$@"'
    own = ("unshare", "--mount", *(("--map-root-user",) if os.geteuid() else ()), "sh", "-c", script, "sh")
    done = subprocess.run((*own, *words), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert re.search(r"testbed: the results can't be written: /.+: No space left on device$", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert testbed("status", name).returncode == 3, "and nothing is left"


MIXED = """
name: mixed
nodes:
  a: {{mptcp: {{scheduler: default}}, commands: [[sh, -c, "echo >> {count}; test $(wc -l < {count}) != {bad}"]]}}
  b: {{}}
links: [{{ends: [a:eth0, b:eth0]}}]
workloads: {{hello: {{command: {{node: a, argv: [sh, -c, "echo hello; {then}"]}}}}}}
checks: [{{metric: a.eth0.tx_packets, min: 0}}]
matrix: {{nodes.a.mptcp.scheduler: [{schedulers}]}}
repeat: 2
"""


def test_a_case_that_can_not_come_up_leaves_the_others_alone(tmp_path: Path, name: str) -> None:
    file, count = tmp_path / "mixed.yaml", tmp_path / "count"
    # The second one has a command that fails; of the last two, no kernel has the scheduler.
    file.write_text(MIXED.format(count=count, bad=2, then="true", schedulers="default, no_such"))
    words = ("run", str(file), "--name", name, "--machine", "here", "--results", str(tmp_path / "r"))
    done = testbed(*words, "--json")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert [(c["verdict"], c["status"]) for c in found] == [("passed", 0), ("error", 3), ("error", 4), ("error", 4)]
    assert "it ended with status 1" in found[1]["failures"][0]
    assert "feature mptcp-scheduler-no_such" in found[2]["failures"][0]
    assert done.stderr.splitlines()[-1].startswith("testbed: 1 of 4 cases: mixed scheduler=default_2: [a] sh -c ")
    for case in found:
        verdict = json.loads(Path(case["folder"], "verdict.json").read_text())
        assert (verdict["verdict"], verdict["failures"]) == (case["verdict"], case["failures"])
        assert testbed("report", case["folder"]).returncode == (3 if case["status"] else 0)
    suites = ElementTree.parse(tmp_path / "r/mixed/junit.xml").getroot()
    assert [s.get("name") for s in suites] == [
        f"mixed scheduler={x}_{n}" for x in ("default", "no_such") for n in (1, 2)
    ]
    assert [int(s.get("errors", "")) for s in suites] == [0, 1, 1, 1]
    assert len(list(suites.iter("testsuite"))) == 4
    whole = (tmp_path / "r/mixed/latest").resolve()
    places = [f"runs/scheduler={x}/{n}" for x in ("default", "no_such") for n in (1, 2)]
    assert [Path(case["folder"]).resolve() for case in found] == [whole / place for place in places]
    assert [run["folder"] for run in json.loads((whole / "verdict.json").read_text())["runs"]] == places
    again = testbed("report", str(whole), "--json")
    assert again.returncode == 3
    assert [c["failures"] for c in json.loads(again.stdout)] == [c["failures"] for c in found]
    assert name not in testbed("status").stdout
    # As text, each says what came of it; and where nothing worse comes, what is lacking decides.
    count.unlink()
    done = testbed(*words, "--set", "repeat=1")
    assert done.returncode == 4, done.stderr
    assert "mixed scheduler=default: passed" in done.stdout
    assert "failed: this machine lacks what the topology requires" in done.stdout


def test_who_ends_a_run_of_many_keeps_what_was_done(tmp_path: Path, name: str) -> None:
    file, count = tmp_path / "mixed.yaml", tmp_path / "count"
    text = MIXED.format(count=count, bad=9, then=f"test $(wc -l < {count}) = 1 || sleep 50", schedulers="default")
    file.write_text(text)
    words = ("run", str(file), "--name", name, "--machine", "here", "--results", str(tmp_path / "r"), "--json")
    process = subprocess.Popen(
        (sys.executable, "-m", "testbed", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for row in process.stderr:
        if row.startswith("[2/2]") and "sleep 50" in row:
            break
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert [c["verdict"] for c in json.loads(out)] == ["passed"]
    suites = ElementTree.parse(tmp_path / "r/mixed/junit.xml").getroot()
    assert [s.get("name") for s in suites] == ["mixed scheduler=default_1"]
    verdict = json.loads((tmp_path / "r/mixed/latest/verdict.json").read_text())
    assert [r["folder"] for r in verdict["runs"]] == ["runs/scheduler=default/1"]
    assert name not in testbed("status").stdout
