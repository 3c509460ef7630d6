"""Up, exec and down over and over: nothing grows, neither here nor in the kernel.

`python -m tests.fuzz.soak 1000 0` does it 1000 times by the API and 100 times by the command line.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import testbed
from testbed.plan.lab import plan
from tests.fuzz import labs

_SLABS = ("net_namespace", "pid_namespace", "mnt_cache", "task_struct", "sock_inode_cache")
# Kernel memory that is not given back may be caches: per cycle, it is a leak. A lab of two nodes takes some 600 kB.
_KERNEL_KB, _SOME_KB = 2.0, 30_000.0
FILE = """
name: soak
nodes: {a: {}, b: {mptcp: {}}}
links: [{ends: [a:eth0, b:eth0], rate: 50mbit}]
"""


def measured() -> dict[str, float]:
    """Return what there is of what may grow, when what is on its way out has gone."""
    gc.collect()
    with suppress(OSError):  # only root may
        Path("/proc/sys/vm/drop_caches").write_text("3")
    deadline = time.monotonic() + 8
    found = _now()
    while time.monotonic() < deadline:  # the kernel takes namespaces apart later
        time.sleep(1)
        before, found = found, _now()
        if found["slab kB"] >= before["slab kB"] - 100 and found.get("net_namespace") == before.get("net_namespace"):
            break
    return found


def _now() -> dict[str, float]:
    memory = {r.split(":")[0]: float(r.split()[1]) for r in Path("/proc/meminfo").read_text().splitlines()}
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10
    found = {
        "processes": float(sum(entry.isdigit() for entry in os.listdir("/proc"))),
        "descriptors": float(len(os.listdir("/proc/self/fd"))),
        "own kB": float(resident),
        "slab kB": memory["SUnreclaim"],
        "per CPU kB": memory["Percpu"],
        "stacks kB": memory["KernelStack"],
        "sockets": float(len(Path("/proc/net/unix").read_text().splitlines())),
    }
    with suppress(OSError):  # only root may
        for row in Path("/proc/slabinfo").read_text().splitlines()[2:]:
            name, active = row.split()[:2]
            if name in _SLABS:
                found[name] = float(active)
    return found


def by_api(count: int) -> None:
    """Go through that many labs in this process."""
    with labs.begun() as (line, name):
        (line.folder / "soak.yaml").write_text(FILE)
        made = plan(testbed.load(line.folder / "soak.yaml"))
        for _ in range(count):
            with testbed.up(made, name) as lab:
                assert lab.exec("a", ("true",)).returncode == 0


def by_command_line(count: int) -> None:
    """Go through that many labs, three commands each."""
    with labs.begun() as (line, name):
        (line.folder / "soak.yaml").write_text(FILE)
        for _ in range(count):
            words = (("up", "soak.yaml", "--name", name), ("exec", name, "a", "--", "true"), ("down", name))
            for argv in words:
                done = (sys.executable, "-m", "testbed", *argv)
                subprocess.run(done, cwd=line.folder, check=True, capture_output=True, timeout=120)


def grown(before: Mapping[str, float], after: Mapping[str, float], count: int) -> list[str]:
    """Return what has grown with the number of labs."""
    few = 50 + 0.02 * count  # others may make namespaces meanwhile
    exact = {"processes": 0, "descriptors": 0, "sockets": 0, "net_namespace": few, "pid_namespace": few}
    found = [key for key, most in exact.items() if key in before and after[key] - before[key] > most + 3]
    sizes = ("own kB", "slab kB", "per CPU kB")
    return found + [key for key in sizes if after[key] - before[key] > _SOME_KB + _KERNEL_KB * count]


def _round(what: str, go: Callable[[int], None], times: int) -> list[str]:
    """Go through that many labs; print what there was before and after, and return what has grown."""
    before, began = measured(), time.monotonic()
    go(times)
    spent = time.monotonic() - began
    after = measured()
    print(f"soak: {times} labs by the {what}, {times / spent:.1f} a second")
    for key in before:
        print(f"  {key:17} {before[key]:10.0f} {after[key]:10.0f}  {after[key] - before[key]:+.0f}")
    return grown(before, after, times)


def main(count: int, seed: int) -> int:
    """Go through that many labs, print what there was before and after, and return 1 when anything has grown."""
    del seed  # nothing here is left to chance
    bad = 0
    for what, go, times in (("API", by_api, count), ("command line", by_command_line, max(1, count // 10))):
        go(min(5, times))  # what is made once and kept
        found = _round(what, go, times)
        if found:
            # All objects of a slab that a processor holds count as active (mm/slub.c), so that a count may rise once.
            # What labs leave behind makes it rise each time.
            print(f"  more: {', '.join(found)}; once again")
            found = [key for key in _round(what, go, times) if key in found]
        if found:
            bad += 1
            print(f"  GROWN: {', '.join(found)}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
