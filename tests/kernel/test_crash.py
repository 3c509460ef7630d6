"""Whatever is killed at whatever moment, the kernel cleans up: nothing of the lab is left, and its name is free."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from testbed.errors import LabError
from testbed.lab import control, reach
from testbed.linux import unix
from tests.kernel.remains import Driver, Process, awaited, driver, tag

pytestmark = pytest.mark.kernel

SEED = int(os.environ.get("TESTBED_SEED") or random.randrange(10**6))  # printed with a failure; set it to repeat
LAB = """
name: crash
nodes: {a: {commands: [[sleep, "0.02"]]}, b: {}, c: {router: {}}}
links:
  - {ends: [a:eth0, c:eth0], rate: 50mbit}
  - {ends: [c:eth1, b:eth0]}
workloads:
  bulk: {iperf3: {from: a, to: b, seconds: 1}}
  echo: {ping: {from: a, to: b, seconds: 1, interval: 100ms}}
capture: ["a:eth0"]
"""


@pytest.fixture
def line(tmp_path: Path, name: str) -> Iterator[Driver]:
    """A command line that is loaded already, and the topology as ../lab.yaml."""
    (tmp_path / "lab.yaml").write_text(LAB)
    with driver(tmp_path, name) as found:
        yield found


def whole_or_nothing(line: Driver, name: str, told: str) -> bool:
    """Say whether a lab is up, which then must work; else nothing may be left of it."""
    for _ in range(200):
        with suppress(LabError):
            lab = control.find(name)
            if lab.status()["state"] == "up":
                assert lab.exec("a", ("ping", "-c1", "-W2", "b")).returncode == 0, told
                return True
        if name not in reach.names():
            break
        time.sleep(0.01)  # it is coming or going
    assert line.remains(name) == {}, told
    return False


def struck(victim: Process | None, number: int = signal.SIGKILL) -> str:
    """Send a signal to a process that may have ended, and say so for the failure message."""
    if victim is not None:
        with suppress(ProcessLookupError):
            os.kill(victim.pid, number)
    return f"signal {number} to {victim}"


def one_of(processes: list[Process], chance: random.Random) -> Process | None:
    return chance.choice(processes) if processes else None


def running(name: str) -> Process:
    """Return the holder of a lab as soon as it listens."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(LabError), control.connect(name) as connection:
            return Process(unix.peer(connection).pid, "the holder")
        time.sleep(0.005)
    raise AssertionError(f"there is no lab {name}")


def times(line: Driver, *argv: str) -> float:
    """Return how long a verb takes when it is left alone."""
    began = time.monotonic()
    assert line.run(*argv) == 0, line.said()
    return time.monotonic() - began


@pytest.mark.parametrize("who", ["the command line", "any process"])
def test_kill_9_during_up_leaves_the_whole_lab_or_nothing(line: Driver, name: str, who: str) -> None:
    chance = random.Random(SEED)
    words = ("up", "../lab.yaml", "--name", name)
    length = times(line, *words)
    control.find(name).down()
    ends = []
    for _ in range(10):  # `make fuzz` tries more
        began = time.monotonic()
        cli = line.begin(*words)
        time.sleep(chance.uniform(0, 1.1 * length))
        victim = Process(cli, "testbed up") if who == "the command line" else one_of(line.processes(), chance)
        told = f"seed {SEED}: {struck(victim)} after {time.monotonic() - began:.4f} s of {length:.4f} s"
        status = line.end()
        assert status in (0, 3, -signal.SIGKILL), f"{told}: {status}: {line.said()}"
        assert "Traceback" not in line.said(), told
        ends.append(whole_or_nothing(line, name, f"{told}: {line.said()}"))
        if ends[-1]:
            control.find(name).down()
            assert line.remains(name) == {}, told
    assert not all(ends), f"seed {SEED}: no moment was before the lab was up"
    assert line.run(*words) == 0, line.said()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_up_leaves_nothing_and_after_it_a_lab_that_says_so(
    line: Driver, name: str, number: signal.Signals
) -> None:
    chance = random.Random(SEED)
    words = ("up", "../lab.yaml", "--name", name)
    length = times(line, *words)
    control.find(name).down()
    for _ in range(8):
        began = time.monotonic()
        cli = line.begin(*words)
        # `main` has set its handlers by then: before, a signal ends Python as it ends any program
        time.sleep(chance.uniform(0.2 * length, 1.1 * length))
        told = f"seed {SEED}: {struck(Process(cli, 'testbed up'), number)} after {time.monotonic() - began:.4f} s"
        status = line.end()
        if status == 0:
            assert whole_or_nothing(line, name, told), f"{told}: {line.said()}"
            control.find(name).down()
        else:
            assert status == 128 + number, f"{told}: {line.said()}"
            assert f"interrupted ({number.name})" in line.said()
            assert name not in reach.names(), f"{told}: it must be gone when the command line is"
        assert line.remains(name) == {}, told


STRIKES = """
import select, signal, sys, time
from testbed.lab import reach, sandbox
name = sys.argv[1]
class Struck(Exception): pass
def strike(number, frame): raise Struck
def make():
    sandbox.launch(name, lambda _, owner: owner.recv(1), use)
def use(owner, life):
    owner.close()
    select.select([life], [], [])
length = 9.0
for _ in range(8):
    began = time.monotonic()
    make()
    length = min(length, time.monotonic() - began)
signal.signal(signal.SIGALRM, strike)
struck = 0
for n in range(1, 150):
    after = 1.5 * length * n / 150
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        make()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Struck:
        struck += 1
        if name in reach.names():
            sys.exit(f"there is a sandbox after a strike at {after:.5f} s of {length:.5f} s")
print(struck)
"""


def test_an_exception_of_a_signal_while_a_sandbox_is_made_is_raised_when_nothing_is_left_of_it(name: str) -> None:
    # In a process of one thread: in another one a signal would be noticed, and handled here, while it is blocked.
    done = subprocess.run((sys.executable, "-c", STRIKES, name), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 50, "of 149 while it was made"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_up_waits_for_goes_with_it(line: Driver, name: str, number: signal.Signals) -> None:
    (line.folder / "lab.yaml").write_text("name: slow\nnodes: {a: {commands: [[sleep, '1000']]}}\n")
    cli = line.begin("up", "../lab.yaml", "--name", name)
    awaited(line, "sleep 1000")
    tags = tag(control.find(name))
    struck(Process(cli, "testbed up"), number)
    assert line.end() == (-number if number == signal.SIGKILL else 128 + number)
    assert line.remains(name, tags) == {}


def only(results: Path) -> Path:
    """Return the folder of the one run that a lab has results of; beside it may be `latest` and `junit.xml`."""
    (found,) = [f for f in results.iterdir() if f.is_dir() and not f.is_symlink()]
    return found


RUNS = {"the command line": 4, "the holder": 4, "a process of the lab": 6}


@pytest.mark.parametrize("who", RUNS)
def test_kill_9_during_run_leaves_nothing_but_results(line: Driver, name: str, who: str) -> None:
    chance = random.Random(SEED)
    for n in range(RUNS[who]):
        root = f"results/{n}"
        cli = line.begin("run", "../lab.yaml", "--name", name, "--results", root)
        holder = running(name)
        began = time.monotonic()
        time.sleep(chance.uniform(0, 1.6))
        inside = [p for p in line.processes() if p.pid not in (cli, holder.pid)]
        victim = {"the command line": Process(cli, "testbed run"), "the holder": holder}.get(
            who, one_of(inside, chance)
        )
        told = f"seed {SEED}, run {n}: {struck(victim)} after {time.monotonic() - began:.4f} s"
        status = line.end()
        said = line.said()
        assert "Traceback" not in said, f"{told}: {said}"
        assert line.remains(name) == {}, told
        folder = only(line.folder / "work" / root / "crash")
        assert {f.name for f in folder.iterdir()} >= {"topology.yaml", "plan.txt", "manifest.json"}, told
        if who == "the command line":
            assert status == -signal.SIGKILL, told
        elif who == "the holder":
            assert status == 3 or (folder / "verdict.json").exists(), f"{told}: {said}"
            assert status == 0 or "its holder process ended" in said, f"{told}: {said}"
        elif not json.loads((folder / "run.json").read_text())["monotonic"]:  # it was a command that `up` waited for
            assert status == 3, f"{told}: {said}"
            assert "ended with signal SIGKILL" in said, told
        else:
            ended = json.loads((folder / "run.json").read_text())["processes"]
            killed = [p for p in ended if p["status"] == -signal.SIGKILL]
            assert (status == 3) == bool(killed), f"{told}: {killed}: {said}"
            for p in killed:
                assert f"{p['name']} ended with signal SIGKILL" in said, told


LONG = LAB.replace("seconds: 1}", "seconds: 30}").replace("seconds: 1,", "seconds: 30,")
ROLES = {
    "sampler": "[-] sampler",
    "dumpcap": "[a] eth0.dumpcap",
    "iperf3 -s": "[b] bulk.server",
    "iperf3 -c": "[a] bulk.client",
    "ping": "[a] echo.ping",
}


@pytest.mark.parametrize("words", ROLES, ids=ROLES.values())
def test_a_process_that_is_killed_ends_the_run_with_its_name_its_end_and_its_log(
    line: Driver, name: str, words: str
) -> None:
    (line.folder / "lab.yaml").write_text(LONG)
    line.begin("run", "../lab.yaml", "--name", name, "--results", "results")
    awaited(line, "ping -n")
    tags = tag(control.find(name))
    began = time.monotonic()
    struck(awaited(line, words))
    if words in ("iperf3 -c", "ping"):  # the others go on: theirs are results too
        struck(awaited(line, "ping" if words == "iperf3 -c" else "iperf3 -c"))
    assert line.end() == 3, line.said()
    assert time.monotonic() - began < 15, "it does not wait for the end of what can't succeed"
    assert f"failed: {ROLES[words]} ended with signal SIGKILL" in line.said()
    if words == "dumpcap":
        assert "    eth0.dumpcap.log: Capturing on 'eth0'" in line.said()
    folder = (line.folder / "work/results/crash/latest").resolve()
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "error"
    assert (folder / "a/samples.jsonl").read_text()
    assert line.remains(name, tags) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_run_leaves_nothing_but_results(line: Driver, name: str, number: signal.Signals) -> None:
    chance = random.Random(SEED)
    (line.folder / "lab.yaml").write_text(LONG)
    for n in range(4):
        cli = line.begin("run", "../lab.yaml", "--name", name, "--results", f"results/{n}")
        tags: set[int] = set()
        if n == 0:
            awaited(line, "ping -n")
            tags = tag(control.find(name))
        else:
            running(name)
            time.sleep(chance.uniform(0, 0.4))
        struck(Process(cli, "testbed run"), number)
        assert line.end() == 128 + number, f"seed {SEED}: {line.said()}"
        assert "Traceback" not in line.said()
        assert name not in reach.names(), f"seed {SEED}: it must be gone when the command line is"
        assert line.remains(name, tags) == {}, f"seed {SEED}"
        assert list((line.folder / "work/results" / str(n) / "crash").glob("*/plan.txt"))


def test_a_signal_before_the_lab_leaves_no_folder_that_is_none_of_results(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ping").write_text("#!/bin/sh\nexec sleep 1000\n")  # is asked for its version
    (tmp_path / "ping").chmod(0o755)
    (tmp_path / "lab.yaml").write_text(LAB)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with driver(tmp_path / "run", name) as line:
        cli = line.begin("run", "../../lab.yaml", "--name", name)
        awaited(line, "sleep 1000")
        os.kill(cli, signal.SIGINT)
        assert line.end() == 128 + signal.SIGINT, line.said()
        assert line.remains(name) == {}
        assert list((line.folder / "work").rglob("*")) == []


@pytest.mark.parametrize("who", ["the command line", "the holder"])
def test_kill_9_during_down_leaves_the_whole_lab_or_nothing(line: Driver, name: str, who: str) -> None:
    chance = random.Random(SEED)
    up = ("up", "../lab.yaml", "--name", name)
    assert line.run(*up) == 0
    length = times(line, "down", name)
    for n in range(8):
        assert line.run(*up) == 0, f"seed {SEED}: {line.said()}"
        tags = tag(control.find(name))
        holder = running(name)
        began = time.monotonic()
        cli = line.begin("down", name)
        time.sleep(chance.uniform(0, 1.1 * length))
        victim = Process(cli, "testbed down") if who == "the command line" else holder
        told = f"seed {SEED}, round {n}: {struck(victim)} after {time.monotonic() - began:.4f} s"
        status = line.end()
        assert "Traceback" not in line.said(), f"{told}: {line.said()}"
        if who == "the holder":  # one that ended before it was asked is no lab, says `down`
            assert status in (0, 3), f"{told}: {line.said()}"
            assert line.remains(name, tags) == {}, told
        elif whole_or_nothing(line, name, told):
            assert line.run("down", name) == 0, f"{told}: {line.said()}"
        assert line.remains(name, tags) == {}, told


def test_a_down_that_is_killed_half_way_goes_on(line: Driver, name: str) -> None:
    (line.folder / "lab.yaml").write_text(LONG)
    with driver(line.folder / "run", f"{name}-run") as run:
        run.begin("run", "../../lab.yaml", "--name", name)
        awaited(run, "ping -n")
        # The newest ends first, and one that is stopped holds the others up for some seconds.
        struck(awaited(run, "iperf3 -c"), signal.SIGSTOP)
        cli = line.begin("down", name)
        deadline = time.monotonic() + 5
        while any(p.words.startswith("ping") for p in run.processes()):
            assert time.monotonic() < deadline
        struck(Process(cli, "testbed down"))
        assert line.end() == -signal.SIGKILL
        assert run.end() == 3
        assert "it is being taken down" in run.said()
        assert run.remains(name) == {}
        folder = only(run.folder / "work/results/crash")
        said = json.loads((folder / "run.json").read_text())
        assert said["events"], "the run was ended in its own orderly way"
        assert said["failures"] == [f"lab {name}: it is being taken down"]
        assert json.loads((folder / "verdict.json").read_text())["verdict"] == "error"
        assert (folder / "dmesg.log").exists()


def test_a_holder_that_is_stopped_is_ended_all_the_same(line: Driver, name: str) -> None:
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    lab = control.find(name)
    tags = tag(lab)
    os.kill(lab.holder, signal.SIGSTOP)
    assert line.run("exec", name, "a", "true") == 125
    assert f"lab {name}: its holder, process {lab.holder}, does not answer" in line.said()
    lab.down(patience=0.2)
    assert line.remains(name, tags) == {}


def test_the_death_of_a_holder_is_told_by_every_verb(line: Driver, name: str) -> None:
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    lab = control.find(name)
    tags = tag(lab)
    os.kill(lab.holder, signal.SIGKILL)
    assert line.remains(name, tags) == {}
    with pytest.raises(LabError, match="no such lab is up"):
        lab.exec("a", ("true",))
    for words, ended in ((("status", name), 3), (("exec", name, "a", "true"), 125), (("down", name), 3)):
        assert line.run(*words) == ended
        assert f"lab {name}: no such lab is up" in line.said()
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    lab.down()  # of the one that is dead: not of another that has its name now
    assert control.find(name).status()["state"] == "up"
