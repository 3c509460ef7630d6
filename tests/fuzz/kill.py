"""SIGKILL at any moment of any verb, to any process: the whole lab is there afterwards, or nothing of it.

`python -m tests.fuzz.kill 100 7` kills 100 times, with the seed 7.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter

from tests.fuzz import labs
from tests.kernel.remains import Driver, Process

_VERBS = ("up", "run", "down", "exec", "report")
_WHO = ("the command line", "any", "two")


def once(line: Driver, name: str, verb: str, who: str, chance: random.Random, longest: dict[str, float]) -> str:
    """Disturb one command; return what is wrong afterwards, "" when nothing is."""
    words = {
        "up": ("up", "../lab.yaml", "--name", name),
        "run": ("run", "../lab.yaml", "--name", name, "--results", "results"),
        "down": ("down", name),
        "exec": ("exec", name, "a", "--", "sh", "-c", "sleep 0.2 & (setsid sleep 301 &) ; wait"),
        "report": ("report", "results/disturbed/latest"),
    }
    if verb in ("down", "exec") and line.run(*words["up"]):
        return f"up before {verb}: {line.said()}"
    if (
        verb == "report"
        and not (line.folder / "work/results/disturbed/latest").exists()
        and line.run(*words["run"]) > 1
    ):
        return f"run before report: {line.said()}"
    began = time.monotonic()
    cli = line.begin(*words[verb])
    time.sleep(chance.uniform(0, 1.1 * longest.get(verb, 0.3)))
    told = f"{verb} after {time.monotonic() - began:.3f} s: "
    for _ in range(2 if who == "two" else 1):
        victim = Process(cli, f"testbed {verb}") if who == "the command line" else labs.chosen(line, chance)
        told += f"{labs.signalled(victim, signal.SIGKILL)}; "
    status = line.end()
    others = (125, 128 + signal.SIGKILL, 128 + signal.SIGTERM) if verb == "exec" else ()
    if status not in (*labs.STATUSES, *others):
        return f"{told}status {status}: {line.said()}"
    if status != -signal.SIGKILL:
        longest[verb] = max(longest.get(verb, 0.0), min(time.monotonic() - began, 3.0))
    if "Traceback" in line.said():
        return f"{told}{line.said()}"
    wrong = labs.settle(line, name)
    if wrong and who == "two":
        # Where a lab and what waits for its end are both killed, its cgroup goes with the next lab.
        ends = [line.run(*words["up"]), line.run("down", name)]
        wrong = labs.settle(line, name) or ("" if ends == [0, 0] else f"up and down: {ends}: {line.said()}")
    return f"{told}{wrong}" if wrong else ""


def main(count: int, seed: int) -> int:
    """Kill that many times, print what came of it, and return 1 when anything is wrong."""
    chance, tried, bad = random.Random(seed), Counter[str](), 0
    longest: dict[str, float] = {}
    began = time.monotonic()
    with labs.begun() as (line, name):
        for n in range(count):
            verb, who = _VERBS[n % len(_VERBS)], _WHO[n // len(_VERBS) % len(_WHO)]
            tried[verb] += 1
            if wrong := once(line, name, verb, who, chance, longest):
                bad += 1
                print(f"kill: seed {seed}, number {n}: {wrong}")
    spent = time.monotonic() - began
    print(f"kill: seed {seed}: {count} kills, {count / spent:.2f} a second; {dict(tried)}; {bad} wrong")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
