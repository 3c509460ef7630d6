"""A file system that is full at any write of a run: the run says so, and so does a report of what is there.

`python -m tests.fuzz.full 20 7` runs 20 times on file systems of random sizes, with the seed 7. It needs namespaces.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from testbed.linux import calls as linux
from tests.fuzz import labs
from tests.kernel.remains import Driver

_LEAST = 8192  # bytes; a run takes some 7 MB


def once(line: Driver, name: str, size: int) -> tuple[int, str]:
    """Run with so many bytes for results; return the exit status, and what is wrong."""
    place = line.folder / "work/results"
    place.mkdir(exist_ok=True)
    pages = max(2, size >> 12)
    linux.mount("tmpfs", str(place), "tmpfs", 0, f"size={pages << 12},nr_inodes=400")
    try:
        status = line.run("run", "../lab.yaml", "--name", name, "--results", "results")
        said = line.said()
        if status not in (0, 1, 3) or "Traceback" in said or "a bug in testbed" in said:
            return status, f"status {status}: {said}"
        if status == 3 and "can't be written" not in said and "No space left" not in said and "failed:" not in said:
            return status, f"it does not say what was full: {said}"
        for folder in (f for f in place.glob("disturbed/*") if not f.is_symlink()):
            if line.run("report", str(folder)) not in (0, 1, 2, 3) or "Traceback" in line.said():
                return status, f"report: {line.said()}"
    finally:
        subprocess.run(("umount", place), check=True)
    return status, labs.settle(line, name)


def main(count: int, seed: int) -> int:
    """Run that many times, print what came of it, and return 1 when anything is wrong."""
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWNS | (linux.CLONE_NEWUSER if uid else 0))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    chance, ends, bad = random.Random(seed), Counter[int](), 0
    began = time.monotonic()
    with labs.begun() as (line, name):
        for n in range(count):
            size = int(_LEAST * 2 ** chance.uniform(0, 13))  # most of them small: there are the most files
            status, wrong = once(line, name, size)
            ends[status] += 1
            if wrong:
                bad += 1
                print(f"full: seed {seed}, number {n}: {size} bytes: {wrong}")
    spent = time.monotonic() - began
    print(f"full: seed {seed}: {count} runs, {count / spent:.2f} a second; by exit status {dict(ends)}; {bad} wrong")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
