"""`python -m tests.fuzz KIND... [--n N] [--seed S]`: programs of this folder, with a number and a seed.

Without kinds it is all of them, without a number as many as take some seconds each, without a seed a random one. Those
that only need a processor share the number among as many processes as there are processors.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed.machines.guest import image

# How many take some seconds; those of `MANY` may run beside themselves, the others look at the whole machine.
COUNTS: Mapping[str, int] = {
    "parsers": 4000,
    "yaml": 4000,
    "report": 1000,
    "paths": 20_000,
    "guest": 200_000,
    "sockets": 200,
    "kill": 21,
    "stop": 4,
    "full": 8,
    "guests": 6,
    "clock": 2,
    "soak": 100,
}
MANY = ("parsers", "yaml", "report", "paths", "guest")
IN_GUESTS = ("guests", "clock")  # which need an image: `make machine`
ROOT = Path(__file__).parents[2]


def kinds() -> list[str]:
    """Return the kinds that there are, in the order of COUNTS."""
    return [kind for kind in COUNTS if Path(__file__).with_name(f"{kind}.py").exists()]


def shares(kind: str, count: int, workers: int) -> list[int]:
    """Return how many inputs each process tries."""
    parts = min(workers, count) if kind in MANY else 1
    return [count // parts + (n < count % parts) for n in range(parts)]


def tried(kind: str, count: int, seed: int, workers: int) -> int:
    """Run the programs of a kind side by side to their end; return how many found something."""
    began = time.monotonic()
    words = [
        (sys.executable, "-m", f"tests.fuzz.{kind}", str(n), str(seed + at))
        for at, n in enumerate(shares(kind, count, workers))
    ]
    running = [subprocess.Popen(w, cwd=ROOT) for w in words]
    bad = sum(process.wait() != 0 for process in running)
    spent = time.monotonic() - began
    end = "nothing wrong" if not bad else f"WRONG: {' '.join(words[0][:4])} N SEED tries them again"
    print(f"{kind}: {count} in {spent:.1f} s, {count / spent:.1f} a second, from seed {seed}: {end}", flush=True)
    return bad


def main(argv: Sequence[str]) -> int:
    """Try what the command line names; return 1 when anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kind", nargs="*", choices=[*kinds(), []], help="; ".join(kinds()))
    parser.add_argument("--n", type=int, help="how many; some seconds of each kind when left out")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(argv)
    wanted = list(asked.kind) or [kind for kind in kinds() if kind != "soak"]
    if os.geteuid() and "sockets" in wanted:
        print("left out, for it takes root to be another user: sockets", flush=True)
        wanted.remove("sockets")
    if image.find() is None and (left := [kind for kind in wanted if kind in IN_GUESTS]):
        print(f"left out, because a guest's image is missing (`make machine` builds it): {' '.join(left)}", flush=True)
        wanted = [kind for kind in wanted if kind not in IN_GUESTS]
    found = [tried(kind, asked.n or COUNTS[kind], asked.seed, asked.workers) for kind in wanted]
    return int(any(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
