"""SIGSTOP of any process of a run for a while: the run ends all the same, says how, and leaves nothing.

`python -m tests.fuzz.stop 20 7` runs 20 times, with the seed 7.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter

from tests.fuzz import labs
from tests.kernel.remains import Driver, Process

_LONGEST = 3.0  # s that a process stands still


def once(line: Driver, name: str, number: int, chance: random.Random) -> tuple[str, str]:
    """Stop a process of a run and let it go on; return which, and what is wrong afterwards."""
    cli = line.begin("run", "../lab.yaml", "--name", name, "--results", f"results/{number}")
    began = time.monotonic()
    time.sleep(chance.uniform(0.1, 1.5))
    victim = Process(cli, "testbed run") if chance.random() < 0.2 else labs.chosen(line, chance)
    what = f"after {time.monotonic() - began:.3f} s {labs.signalled(victim, signal.SIGSTOP)}"
    time.sleep(chance.uniform(0.1, _LONGEST))
    labs.signalled(victim, signal.SIGCONT)
    status = line.end()
    said = line.said()
    if status not in labs.STATUSES or "Traceback" in said:
        return what, f"status {status}: {said}"
    return what, labs.settle(line, name)


def main(count: int, seed: int) -> int:
    """Run that many times, print what came of it, and return 1 when anything is wrong."""
    chance, stopped, bad = random.Random(seed), Counter[str](), 0
    began = time.monotonic()
    with labs.begun() as (line, name):
        for n in range(count):
            what, wrong = once(line, name, n, chance)
            stopped[what.rpartition(" to ")[2].split(" ")[0]] += 1
            if wrong:
                bad += 1
                print(f"stop: seed {seed}, number {n}: {what}: {wrong}")
    spent = time.monotonic() - began
    print(f"stop: seed {seed}: {count} runs, {count / spent:.2f} a second; {dict(stopped)}; {bad} wrong")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
