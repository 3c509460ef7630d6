"""Labs of a user who is not root: in a user namespace of their own, with the same commands."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.kernel.remains import MARK, Remains, marked, remains, settled

pytestmark = pytest.mark.kernel

TWO = str(ROOT / "topologies/two-hosts.yaml")
NOBODY = 65534


@dataclass(frozen=True, slots=True)
class User:
    """Somebody without privileges, at home in a folder of their own."""

    uid: int
    become: tuple[str, ...]
    home: Path
    env: Mapping[str, str]
    python: str = sys.executable

    def does(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this user."""
        return subprocess.run(
            (*self.become, *argv), cwd=self.home, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )

    def testbed(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run the command line as this user."""
        return self.does(self.python, "-m", "testbed", *argv)


@pytest.fixture
def user(name: str) -> Iterator[User]:
    """An unprivileged user: nobody when the tests are run by root, else the one who runs them."""
    home = Path(tempfile.mkdtemp())  # not tmp_path: pytest lets nobody else into that
    env = {**os.environ, "HOME": str(home), MARK: name}
    found = User(os.geteuid(), (), home, env)
    if found.uid == 0:
        # The shell in between runs the command without any privilege of setpriv's.
        become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c", 'exec "$@"', "sh")
        found = User(NOBODY, become, home, env)
        os.chown(home, NOBODY, NOBODY)
    try:
        if (done := found.does("unshare", "--user", "--net", "true")).returncode:
            pytest.skip(f"user {found.uid} may not make user namespaces: {done.stderr.strip()}")
        check = ("-c", f"import testbed.runs.bring_up; open({TWO!r})")
        if (done := found.does(found.python, *check)).returncode:
            # This interpreter may be in a folder that is closed to others; the system's of the same version never is.
            path = os.pathsep.join((str(ROOT), sysconfig.get_path("platlib")))
            python = f"/usr/bin/python{sysconfig.get_python_version()}"
            found = replace(found, python=python, env={**env, "PYTHONPATH": path})
            done = found.does(found.python, *check)
        if done.returncode:
            pytest.skip(f"user {found.uid} can't read this checkout or run its Python: {done.stderr.splitlines()[-1]}")
        yield found
    finally:
        for process in marked(name):
            os.kill(process.pid, signal.SIGKILL)
        shutil.rmtree(home)


def left(name: str) -> Remains:
    """Return what there is of a user's lab."""
    sockets = [r for r in Path("/proc/net/unix").read_text().splitlines() if r.endswith(f"/{name}")]
    found = {**remains(name), "process": [p.words for p in marked(name)], "socket": sockets}
    return {kind: rows for kind, rows in found.items() if rows}


def test_a_lab_of_a_user_is_as_good_as_one_of_root(user: User, name: str) -> None:
    done = user.testbed("up", TWO, "--name", name)
    assert done.returncode == 0, done.stderr
    assert user.testbed("exec", name, "client", "--", "ping", "-c1", "-W2", "server").returncode == 0
    assert user.testbed("exec", name, "client", "--", "hostname").stdout == "client\n"
    assert user.testbed("exec", name, "client", "--", "ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]
    assert user.testbed("exec", name, "client", "--", "sh", "-c", "exit 7").returncode == 7
    assert "rate 50Mbit" in user.testbed("exec", name, "server", "--", "tc", "qdisc").stdout
    # Root inside, for tools that ask; outside it is still the user.
    assert user.testbed("exec", name, "client", "--", "id", "-u").stdout == "0\n"
    assert user.testbed("exec", name, "client", "--", "touch", "mine").returncode == 0
    assert (user.home / "mine").stat().st_uid == user.uid
    assert user.testbed("exec", name, "client", "--", "touch", "/etc/theirs").returncode != 0
    assert "changed in" in user.testbed("up", TWO, "--name", name, "--set", "links.cable.rate=20mbit").stdout
    assert "rate 20Mbit" in user.testbed("exec", name, "server", "--", "tc", "qdisc").stdout
    assert name in user.testbed("status").stdout
    assert user.testbed("down", name).returncode == 0
    assert settled(lambda: left(name)) == {}


def test_what_a_command_of_a_user_started_ends_with_it(user: User, name: str) -> None:
    assert user.testbed("up", TWO, "--name", name).returncode == 0
    mine = f"{random.randrange(10**5, 10**6)}"
    script = f"setsid sleep {mine} & (sleep {mine} &) ; exit 5"
    assert user.testbed("exec", name, "client", "--", "sh", "-c", script).returncode == 5
    assert not [p for p in marked(name) if mine in p.words]
    assert user.testbed("down", name).returncode == 0


def test_a_run_of_a_user_leaves_results_that_belong_to_the_user(user: User, name: str) -> None:
    short = ("--set", "workloads.bulk.iperf3.seconds=1", "--set", "workloads.rtt.ping.seconds=1")
    capture = user.home / "lab.yaml"
    capture.write_text(Path(TWO).read_text() + "\ncapture: ['client:eth0']\n")
    done = user.testbed("run", str(capture), "--name", name, *short)
    assert done.returncode in (0, 1), f"the run itself is right, whatever so short a one measures: {done.stderr}"
    folder = (user.home / "results/two-hosts/latest").resolve()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["bulk.goodput_mbps"]["value"] > 20
    assert metrics["client.eth0.captured_packets"]["value"] > 1000
    files = list((user.home / "results").rglob("*"))
    assert len(files) > 15
    assert {p.lstat().st_uid for p in files} == {user.uid}
    assert left(name) == {}


def test_kill_9_of_the_holder_of_a_user_leaves_nothing(user: User, name: str) -> None:
    assert user.testbed("up", TWO, "--name", name).returncode == 0
    (holder,) = marked(name)
    os.kill(holder.pid, signal.SIGKILL)
    assert settled(lambda: left(name)) == {}
    assert user.testbed("status", name).returncode == 3
    assert user.testbed("up", TWO, "--name", name).returncode == 0
    assert user.testbed("down", name).returncode == 0


# A user namespace in which this user is somebody without privileges, and which allows no other below it.
_FORBIDDEN = f"""
import os, sys
from pathlib import Path
from testbed.linux import calls as linux
uid, gid = os.geteuid(), os.getegid()
linux.unshare(linux.CLONE_NEWUSER)
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"{NOBODY} {{uid}} 1")
Path("/proc/self/gid_map").write_text(f"{NOBODY} {{gid}} 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
os.execv(sys.executable, (sys.executable, "-m", "testbed", *sys.argv[1:]))
"""


def test_where_user_namespaces_are_forbidden_it_is_said_with_the_cure_and_nothing_is_made(
    user: User, name: str, tmp_path: Path
) -> None:
    for verb in (("up",), ("run", "--results", str(tmp_path / "results"))):
        words = (sys.executable, "-c", _FORBIDDEN, *verb, TWO, "--name", name)
        done = subprocess.run(words, env=user.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 4, done.stderr
        assert "feature userns: this user may not make user namespaces: " in done.stderr
        assert "/proc/sys/user/max_user_namespaces is 0: sysctl user.max_user_namespaces=10000" in done.stderr
        assert "or run as root" in done.stderr
    assert not (tmp_path / "results").exists()
    assert marked(name) == []
    words = (sys.executable, "-c", _FORBIDDEN, "doctor", "--json")
    done = subprocess.run(words, env=user.env, capture_output=True, text=True, timeout=60, check=False)
    assert [r["present"] for r in json.loads(done.stdout)["features"] if r["feature"] == "userns"] == [False]
