"""What `check` and `plan` take for a node of a file, and of one ten times as large: the same, but for caches.

    python benchmarks/planning.py [--nodes 300] [--kinds ...] [--repeats 3] [--json FILE]

CPU time of this process, the best of the repeats, sizes in turn. Exit status 1: a goal fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from testbed import units  # noqa: E402
from testbed.errors import InputError  # noqa: E402
from testbed.loading import read  # noqa: E402
from testbed.plan import assemble  # noqa: E402
from testbed.plan.lab import plan  # noqa: E402
from testbed.plan.run import run_steps  # noqa: E402
from testbed.rules import addresses  # noqa: E402
from tests.test_bounds import GROWING  # noqa: E402

GOAL = 2.0  # times the CPU time for a node of a file that is ten times as large; a quadratic part makes it ten
TIMES = 10


def once(file: Path) -> float:
    """Return the seconds of CPU time to read, check and plan a file, or to refuse it."""
    for cached in (assemble.network, units.interface_of, addresses.wrong):
        cached.cache_clear()
    began = time.process_time()
    try:
        made = plan(read(file).cases[0].topology)
        "".join(map(str, (*made.steps, *run_steps(made))))
    except InputError as e:
        str(e)
    return time.process_time() - began


def measure(make: Callable[[int], str], sizes: tuple[int, int], repeats: int) -> list[float]:
    """Return the microseconds for each node, event or whatever the kind counts, for both sizes."""
    found: list[list[float]] = [[], []]
    with tempfile.TemporaryDirectory() as work:
        files = [Path(work, f"{size}.yaml") for size in sizes]
        for file, size in zip(files, sizes, strict=True):
            file.write_text(make(size))
        once(files[0])  # what is imported and built at first use
        for _ in range(repeats):
            for times, file in zip(found, files, strict=True):
                times.append(once(file))
    return [min(times) / size * 1e6 for times, size in zip(found, sizes, strict=True)]


def main() -> int:
    """Measure, print a table, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=300, help="of the smaller file")
    parser.add_argument("--kinds", nargs="*", choices=list(GROWING), default=list(GROWING))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows, failed = [], False
    print(f"{'':36}{asked.nodes:>10}{asked.nodes * TIMES:>10}   us each, and the ratio (goal: {GOAL:g})")
    for kind in asked.kinds:
        # An experiment has at most 1000 runs, and a file 1000 captures.
        small = min(asked.nodes, 100) if kind.startswith(("cases", "captures")) else asked.nodes
        few, many = measure(GROWING[kind], (small, small * TIMES), asked.repeats)
        wrong = many / few > GOAL
        failed |= wrong
        rows.append({"kind": kind, "size": small, "us": [few, many], "ratio": many / few})
        print(f"{kind:36}{few:10.1f}{many:10.1f}{many / few:8.2f}{'  TOO MUCH' if wrong else ''}", flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
