"""A clock that is set at any moment of a run, by any amount: no duration changes by it, and the run says that it was.

`python -m tests.fuzz.clock 10 7` runs 10 times in guests, whose clock is their own, with the seed 7.
"""

from __future__ import annotations

import json
import random
import sys
import time

from tests.fuzz import labs
from tests.kernel.remains import Driver

_SECONDS = 4
_LAB = """
name: clock
nodes: {{a: {{}}, b: {{}}}}
links: [{{ends: [a:eth0, b:eth0], rate: 2mbit}}]
workloads:
  mc: {{multicast: {{source: a, receivers: [b], group: 232.1.1.1, rate: 100kbit, seconds: {0}}}}}
  rtt: {{ping: {{from: a, to: b, seconds: {0}}}}}
  bulk: {{iperf3: {{from: a, to: b, seconds: {0}, rate: 200kbit, length: 4kb}}}}
events:
{1}
"""
_SET = "  - {{at: {}ms, node: a, command: [python3, -c, 'import time; time.clock_settime(0, time.time() + {})']}}"
_FELT = 0.1  # s: a smaller step than this need not be told from a clock that is being slewed


def once(line: Driver, name: str, chance: random.Random) -> str:
    """Run once with the clock set some times; return what is wrong."""
    steps = [
        (chance.randrange(_SECONDS * 1000), chance.choice((-1, 1)) * 10 ** chance.uniform(-2, 6)) for _ in range(2)
    ]
    rows = "\n".join(_SET.format(at, f"{by:.3f}") for at, by in sorted(steps))
    (line.folder / "clock.yaml").write_text(_LAB.format(_SECONDS, rows))
    words = ("run", "../clock.yaml", "--name", name, "--machine", "microvm", "--results", "results")
    if (status := line.run(*words)) not in (0, 1) or "Traceback" in line.said():
        return f"{steps}: status {status}: {line.said()}"
    folder = line.folder / "work/results/clock/latest"
    metrics = json.loads((folder / "metrics.json").read_text())
    long = {k: m["value"] for k, m in metrics.items() if m["unit"] == "s" and not 0 <= m["value"] < 3 * _SECONDS}
    if long:
        return f"{steps}: not within the run: {long}"
    doubts = str(json.loads((folder / "verdict.json").read_text())["validity"])
    if any(abs(by) > _FELT for _, by in steps) and "the clock" not in doubts:
        return f"{steps}: no doubt says that the clock was set: {doubts}"
    return ""


def main(count: int, seed: int) -> int:
    """Run that many times, print what came of it, and return 1 when anything is wrong."""
    chance, bad = random.Random(seed), 0
    began = time.monotonic()
    with labs.begun() as (line, name):
        for n in range(count):
            if wrong := once(line, name, chance):
                bad += 1
                print(f"clock: seed {seed}, number {n}: {wrong}")
    spent = time.monotonic() - began
    print(f"clock: seed {seed}: {count} runs, {count / spent:.2f} a second; {bad} wrong")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
