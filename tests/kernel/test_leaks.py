"""Hundreds of labs leave nothing behind: in the process that makes them, and in the kernel."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.lab import control
from tests.conftest import ROOT
from tests.kernel.remains import driver, tag

pytestmark = pytest.mark.kernel

TWO = str(ROOT / "topologies/two-hosts.yaml")
CYCLES, SPACES = 200, 3  # a lab has a network namespace for itself and one for each of its two nodes
_CYCLES = """
import gc, json, os, resource, sys, time, testbed
from pathlib import Path

limit, name, cycles = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
topology = testbed.load(sys.argv[4])
# In this user namespace, so that nobody else's labs count: the kernel refuses what would be a leak.
for kind in ("net", "mnt", "pid", "uts"):
    Path(f"/proc/sys/user/max_{kind}_namespaces").write_text(str(limit))

def seen():
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "resident": int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize(),
        "objects": len(gc.get_objects()),
    }

def cycle():
    with testbed.up(topology, name) as lab:
        pass

for _ in range(20):
    cycle()
before = seen()
began = time.monotonic()
for _ in range(cycles):
    cycle()
after = seen() | {"seconds": time.monotonic() - began}
try:
    children = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    children = None
print(json.dumps([before, after, children]))
"""


def kernel_memory() -> int:
    """Return the bytes that the kernel uses for itself."""
    rows = dict(row.split(":") for row in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(rows[k].split()[0]) * 1024 for k in ("Slab", "Percpu", "KernelStack", "PageTables") if k in rows)


def test_two_hundred_labs_leave_no_namespace_process_descriptor_or_memory(name: str) -> None:
    before = kernel_memory()
    # Namespaces go a little later than their last process, so that there is room for some, but not for a third of all.
    program = (sys.executable, "-c", _CYCLES, str(CYCLES * SPACES // 3), name, str(CYCLES), TWO)
    done = subprocess.run(
        ("unshare", "--map-root-user", *program), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    first, last, children = json.loads(done.stdout)
    assert children is None, "no zombie, and no child that lives"
    assert last["descriptors"] == first["descriptors"]
    assert last["objects"] - first["objects"] < CYCLES, "less than one object a lab"
    assert last["resident"] - first["resident"] < 2 << 20
    # A leaked namespace costs 100 kB and more: this would be 60 MB. Others use this kernel too, but not for ever.
    deadline = time.monotonic() + 60
    while (grown := kernel_memory() - before) > 30 << 20:
        assert time.monotonic() < deadline, f"{grown >> 20} MB more"
        time.sleep(0.1)


def test_twenty_labs_by_the_command_line_leave_nothing(tmp_path: Path, name: str) -> None:
    tags: set[int] = set()
    with driver(tmp_path, name) as line:
        for _ in range(20):
            assert line.run("up", TWO, "--name", name) == 0, line.said()
            tags |= tag(control.find(name))
            assert line.run("down", name) == 0, line.said()
            assert line.processes() == []
        assert len(tags) == 20 * SPACES
        assert line.remains(name, tags) == {}
