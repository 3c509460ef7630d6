"""Labs in a container whose PID 1 reaps nothing, as `docker run` makes it without `--init`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.kernel

TWO = str(ROOT / "topologies/two-hosts.yaml")
# PID 1 of the container: it starts a command, learns of its end without reaping, and reaps nobody else either.
_INIT = """
import os, select, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
select.select([os.pidfd_open(child)], [], [])
ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
sys.stdout.flush()
os._exit(ended.si_status)
"""
_BODY = """
import os, signal, subprocess, sys
from pathlib import Path

def testbed(*words):
    done = subprocess.run((sys.executable, "-m", "testbed", *words), capture_output=True, text=True, timeout=60)
    return f"{done.returncode} {done.stdout}{done.stderr}"

def zombies():
    states = [p.read_text().rpartition(")")[2].split()[0] for p in Path("/proc").glob("[0-9]*/stat")]
    return states.count("Z")

file, name = sys.argv[1:]
print(testbed("up", file, "--name", name))
client = subprocess.Popen((sys.executable, "-m", "testbed", "exec", name, "client", "--", "sh", "-c", "echo; sleep 99"),
                          stdout=subprocess.PIPE)
client.stdout.read(1)
client.kill()
client.wait()
print("down", testbed("down", name))
print("status", testbed("status"))
print("up again", testbed("up", file, "--name", name))
print("killed", testbed("down", name))
print("zombies", zombies())
"""


def test_a_lab_goes_down_where_killed_commands_stay_zombies(tmp_path: Path, name: str) -> None:
    (tmp_path / "init.py").write_text(_INIT)
    (tmp_path / "body.py").write_text(_BODY)
    spaces: tuple[str, ...] = ("--pid", "--net", "--fork", "--kill-child", "--mount-proc")
    spaces += ("--user", "--map-root-user") if os.geteuid() else ()
    words = ("unshare", *spaces, sys.executable, "init.py", sys.executable, str(tmp_path / "body.py"))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        (*words, TWO, name), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"down 0 lab {name} is down" in done.stdout, done.stdout
    assert "status 0 no lab is up" in done.stdout, done.stdout
    assert f"up again 0 lab {name} up" in done.stdout, done.stdout
    assert f"killed 0 lab {name} is down" in done.stdout, done.stdout
    zombies = int(done.stdout.rpartition("zombies")[2])
    assert zombies >= 2, f"this PID 1 reaps, or the command was not killed: {done.stdout}"
