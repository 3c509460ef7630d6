"""A lab keeps within its bounds, whatever runs in it, and takes no other lab down with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.lab import control
from testbed.linux import cgroups
from tests.conftest import ROOT, testbed
from tests.kernel.remains import MARK, marked, settled
from tests.kernel.remains import remains as remaining
from tests.kernel.test_rootless import User, user

__all__ = ["user"]
pytestmark = pytest.mark.kernel

TWO = (ROOT / "topologies/two-hosts.yaml").read_text()
PLACES = cgroups.find()
# Every child goes on with the loop; whatever holds them, they end by themselves.
BOMB = """
import os, time
end = time.monotonic() + 20
while time.monotonic() < end:
    try:
        os.fork()
    except OSError:
        pass
"""
# As many children as there can be, counted, and gone again before anybody looks a fourth time.
COUNT = """
import os, signal
children = []
try:
    while len(children) < 200:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except BlockingIOError:
    pass
for child in children:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
print(len(children))
"""


def bounded(folder: Path, name: str, bounds: str, more: str = "") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(f"{TWO.replace('name: two-hosts', f'name: {name}')}\nresources: {bounds}\n{more}")
    return str(path)


def needs(*keys: str) -> None:
    offered = {*PLACES.separate, *PLACES.together}
    if "pids" in keys and tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 14):
        offered.add("pids")
    if missing := set(keys) - offered:
        pytest.skip(f"this machine has no cgroup with the controllers {missing} for this user")


def test_a_lab_has_as_many_processes_as_its_bound_and_the_machine_as_many_as_before(tmp_path: Path, name: str) -> None:
    needs("pids")
    before = Path("/proc/sys/kernel/pid_max").read_text()
    assert testbed("up", bounded(tmp_path, name, "{pids: 40}")).returncode == 0
    done = testbed("exec", name, "client", "--", sys.executable, "-c", COUNT)
    assert done.stdout == "38\n", "40 without PID 1 and the one that counts"
    assert testbed("exec", name, "client", "--", sys.executable, "-c", COUNT).stdout == "38\n", "and again"
    assert control.find(name).bounds()["pids"].by
    assert Path("/proc/sys/kernel/pid_max").read_text() == before


def test_a_fork_bomb_of_root_ends_its_lab_while_another_answers(tmp_path: Path, name: str) -> None:
    needs("pids")
    other = f"{name}-b"
    work = f"{{command: {{node: client, seconds: 20, argv: [{sys.executable}, {tmp_path}/bomb.py]}}}}"
    (tmp_path / "bomb.py").write_text(BOMB)
    text = f"name: bomb\nnodes: {{client: {{}}}}\nworkloads: {{bomb: {work}}}\nresources: {{pids: 200, cpu: 1}}\n"
    (tmp_path / "bomb.yaml").write_text(text)
    assert testbed("up", str(ROOT / "topologies/two-hosts.yaml"), "--name", other).returncode == 0
    words = (sys.executable, "-m", "testbed", "run", "bomb.yaml", "--name", name)
    try:
        beside = control.find(other)
        with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as run:
            answered = 0
            while run.poll() is None:
                assert beside.exec("client", ("true",)).returncode == 0
                answered += 1
            assert run.stderr is not None
            said = run.stderr.read()
    finally:
        control.find(other).down()
    assert run.returncode == 3, said
    assert answered > 0
    assert "it was ended because it had as many processes as its bound allows (resources.pids: 200)" in said
    assert settled(lambda: remaining(name)) == {}


def test_a_fork_bomb_of_a_user_ends_its_lab_while_another_answers(user: User, name: str) -> None:
    needs("pids")
    (user.home / "bomb.py").write_text(BOMB)
    file = bounded(user.home, name, "{pids: 200}")
    other = f"{name}-b"
    assert user.testbed("up", str(ROOT / "topologies/two-hosts.yaml"), "--name", other).returncode == 0
    try:
        assert user.testbed("up", file).returncode == 0
        assert user.testbed("exec", name, "client", "--", user.python, "bomb.py").returncode == 137
        assert user.testbed("exec", other, "client", "--", "true").returncode == 0
        assert user.testbed("status", name).returncode == 3
    finally:
        user.testbed("down", other)


def test_what_takes_too_much_memory_is_killed_and_the_lab_lives_and_its_run_is_in_doubt(
    tmp_path: Path, name: str
) -> None:
    needs("memory")
    hog = f"[{sys.executable}, -c, 'x = bytearray(300 << 20)']"
    work = f"{{hog: {{command: {{node: client, seconds: 5, argv: {hog}}}}}}}"
    text = f"name: hog\nnodes: {{client: {{}}}}\nworkloads: {work}\nresources: {{memory: 100mb}}\n"
    (tmp_path / "hog.yaml").write_text(text)
    file = bounded(tmp_path, name, "{memory: 100mb}")
    assert testbed("up", file).returncode == 0
    done = testbed("exec", name, "client", "--", sys.executable, "-c", "x = bytearray(300 << 20)")
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    assert control.find(name).bounds()["memory"].killed == 1
    assert testbed("exec", name, "client", "--", "true").returncode == 0
    control.find(name).down()
    done = testbed("run", str(tmp_path / "hog.yaml"), "--name", name, "--results", str(tmp_path / "results"))
    assert done.returncode == 3
    assert "SIGKILL" in done.stderr


def test_a_lab_has_no_more_of_the_processors_than_its_bound_and_the_report_says_what_it_waited(
    tmp_path: Path, name: str
) -> None:
    needs("cpu")
    burn = (
        "import time\nbegan, used = time.monotonic(), time.process_time()\n"
        "while (length := time.monotonic() - began) < 1: pass\nprint((time.process_time() - used) / length)"
    )
    assert testbed("up", bounded(tmp_path, name, "{cpu: 0.1}")).returncode == 0
    done = testbed("exec", name, "client", "--", sys.executable, "-c", burn)
    assert float(done.stdout) < 0.2
    assert control.find(name).bounds()["cpu"].throttled_s > 0
    changed = testbed("up", bounded(tmp_path, name, "{cpu: 0.8}"))
    assert "+ [-] bound cpu=0.8" in changed.stdout, changed.stderr
    assert control.find(name).bounds()["cpu"].bound == "0.8"
    assert testbed("exec", name, "client", "--", "true").returncode == 0


@pytest.mark.parametrize("killed", ["nobody", "PID 1", "who cleans up", "both"])
def test_no_cgroup_of_a_lab_is_left_whoever_is_killed(
    tmp_path: Path, name: str, killed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("memory", "cpu")
    monkeypatch.setenv(MARK, name)
    assert testbed("up", bounded(tmp_path, name, "{memory: 1gb, cpu: 2, pids: 400}")).returncode == 0
    assert len(remaining(name)["cgroup"]) >= 1
    holder = control.find(name).holder
    (after,) = [p.pid for p in marked(name) if p.pid != holder]
    victims = {"PID 1": [holder], "who cleans up": [after], "both": [after, holder]}.get(killed, [])
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    if killed in ("nobody", "who cleans up"):
        assert testbed("down", name).returncode == 0
    if killed == "both":  # then it is the next that goes down
        assert testbed("up", bounded(tmp_path, name, "{pids: 400}")).returncode == 0
        assert testbed("down", name).returncode == 0
    assert settled(lambda: remaining(name)) == {}
    assert settled(lambda: {"process": [p.words for p in marked(name)]} if marked(name) else {}) == {}


def test_what_is_not_enforced_is_a_line_of_up_and_in_its_json_and_in_doubt_in_a_run(user: User, name: str) -> None:
    file = bounded(user.home, name, "{memory: 1gb, cpu: 1.5}")
    done = user.testbed("up", file, "--json")
    assert done.returncode == 0, done.stderr
    resources = json.loads(done.stdout)["resources"]
    if "unenforced" not in resources["memory"]:
        pytest.skip("this user has cgroups")
    assert "testbed: resources.memory: 1gb is not enforced on this machine: no cgroup with the" in done.stderr
    assert "testbed: resources.cpu: 1.5 is not enforced on this machine" in done.stderr
    assert "memory 1gb: not enforced: " in user.testbed("status", name).stdout
    assert user.testbed("down", name).returncode == 0
    short = ("--set", "workloads.bulk.iperf3.seconds=1", "--set", "workloads.rtt.ping.seconds=1")
    done = user.testbed("run", file, "--json", *short)
    (found,) = json.loads(done.stdout)
    assert [d for d in found["validity"] if "resources.memory" in str(d)], found


def test_with_cgroup_v2_the_nearest_group_whose_children_have_the_controllers_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    own = tmp_path / "user.slice/user@1000.service/app.slice/terminal.scope"
    own.mkdir(parents=True)
    offered = {"": "cpu memory pids", "user.slice/user@1000.service": "memory pids"}
    offered |= {"user.slice": "", "user.slice/user@1000.service/app.slice": "memory pids", str(own): ""}
    for folder, controllers in offered.items():
        (tmp_path / folder / "cgroup.subtree_control").write_text(controllers)
        (tmp_path / folder / "cgroup.procs").touch()
    (tmp_path / "cgroup.controllers").touch()
    table = tmp_path / "self"
    table.write_text("0::/user.slice/user@1000.service/app.slice/terminal.scope\n")
    found = cgroups.find(str(table))
    if os.geteuid() == 0:  # who may write everywhere gets them all, further up
        assert found.unified == tmp_path
        assert found.together == {"memory", "pids", "cpu"}
        (tmp_path / "cgroup.subtree_control").write_text("memory pids")
        found = cgroups.find(str(table))
    assert found.unified == own.parent
    assert found.together == {"memory", "pids"}
    table.write_text("0::/user.slice/user@1000.service/app.slice/testbed-lab-1\n")
    assert cgroups.find(str(table)).unified == own.parent, "a lab in a lab's group is beside it"
