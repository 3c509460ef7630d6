"""SIGKILL at any moment of `up` and `down` in a guest, to the command line, the keeper or QEMU: nothing is left of it.

`python -m tests.fuzz.guests 10 7` kills 10 times, with the seed 7. It needs the guest's image.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from testbed.lab import reach
from tests.fuzz import labs
from tests.kernel.remains import Driver, Process, settled

_LAB = "name: small\nnodes: {a: {}, b: {}}\nlinks: [{ends: [a:eth0, b:eth0]}]\n"


def remains(line: Driver, name: str) -> dict[str, list[str]]:
    """Return what there is of a guest."""
    found = {
        "socket": [name] if name in reach.names(reach.GUESTS) else [],
        "process": [f"{p.pid} {p.words[:60]}" for p in line.processes()],
        "file": [str(f) for f in (line.folder / "tmp").iterdir()],
    }
    return {kind: rows for kind, rows in found.items() if rows}


def works(line: Driver, name: str) -> str:
    """Take a guest down that is up, which then must work; return what does not."""
    if name not in reach.names(reach.GUESTS):
        return ""
    if line.run("exec", name, "a", "--", "ping", "-c1", "-W5", "b") not in (0, 125):  # 125: it is not up yet
        return f"the guest is up, and a does not reach b: {line.said()}"
    if line.run("down", name) and name in reach.names(reach.GUESTS):
        return f"down: {line.said()}"
    return ""


def main(count: int, seed: int) -> int:
    """Kill that many times, print what came of it, and return 1 when anything is wrong."""
    chance, tried, bad, longest = random.Random(seed), Counter[str](), 0, 3.0
    began = time.monotonic()
    with labs.begun() as (line, name):
        (line.folder / "work/small.yaml").write_text(_LAB)
        up = ("up", "small.yaml", "--name", name, "--machine", "microvm")
        for n in range(count):
            verb = "down" if n % 3 == 2 else "up"
            if verb == "down" and line.run(*up):
                bad += 1
                print(f"guests: seed {seed}, number {n}: up: {line.said()}")
                continue
            start = time.monotonic()
            cli = line.begin(*(up if verb == "up" else ("down", name)))
            time.sleep(chance.uniform(0, longest if verb == "up" else 1.0))
            victim = Process(cli, f"testbed {verb}") if chance.random() < 0.3 else labs.chosen(line, chance)
            what = f"{verb} after {time.monotonic() - start:.3f} s {labs.signalled(victim, signal.SIGKILL)}"
            tried[Path(victim.words.split()[0]).name if victim and victim.words else "nobody"] += 1
            status = line.end()
            if status == 0 and verb == "up":
                longest = min(1.1 * (time.monotonic() - start), 20.0)
            # 141: what makes a guest's words visible was killed, so nobody reads them.
            sound = status in (*labs.STATUSES, 141) and "Traceback" not in line.said()
            wrong = works(line, name) if sound else f"status {status}: {line.said()}"
            if left := settled(lambda: remains(line, name)):
                wrong += f" left behind: {left}"
            if wrong:
                bad += 1
                print(f"guests: seed {seed}, number {n}: {what}: {wrong}")
    spent = time.monotonic() - began
    print(f"guests: seed {seed}: {count} kills, {count / spent:.2f} a second; {dict(tried)}; {bad} wrong")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
