"""The cost of a command in a node, beside a plain subprocess and Mininet's two ways, in one run.

    python benchmarks/execution.py [--rounds 200] [--cli-rounds 20] [--ways ...] [--json FILE]

Every way runs `true` and waits for it, all in random order. Exit status 1: a goal fails; 2: something
could not be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bringup import (
    DEBIAN_PYTHON,
    LAB,
    PRIVATE_ROOT,
    Goal,
    conversation,
    environment,
    give_up,
    names,
    topology,
)

HERE = Path(__file__).resolve()
WAYS = ("subprocess", "testbed", "testbed-cli", "mininet-cmd", "mininet-popen")

Way = Callable[[], float]  # runs `true` once and returns the seconds that it took


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def answer_for_mininet() -> None:
    """Answer every line of the input, `mininet-cmd` or `mininet-popen`, with the seconds that it took."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    node = importlib.import_module("mininet.node").Node("h1")
    calls: dict[str, Callable[[], object]] = {
        "mininet-cmd": lambda: node.cmd("/bin/true"),  # by its path: `true` is a builtin of the node's shell
        "mininet-popen": lambda: node.popen(["true"]).wait(),
    }
    for line in sys.stdin:
        print(json.dumps({"seconds": timed(calls[line.strip()])}), file=channel)
    node.terminate()


@contextlib.contextmanager
def mininet_ways(folder: Path) -> Iterator[dict[str, Way]]:
    """Keep a node of Mininet's, under Debian's interpreter and in a private root."""
    with conversation((*PRIVATE_ROOT, DEBIAN_PYTHON, str(HERE), "--mininet"), folder) as (questions, answer):

        def ask(way: str) -> float:
            print(way, file=questions)
            return float(answer("seconds"))

        yield {"mininet-cmd": lambda: ask("mininet-cmd"), "mininet-popen": lambda: ask("mininet-popen")}


@contextlib.contextmanager
def testbed_ways(folder: Path) -> Iterator[dict[str, Way]]:
    """Keep a lab of testbed's."""
    file = folder / "star.yaml"
    file.write_text(topology("star", 2))
    testbed = importlib.import_module("testbed")
    lab = testbed.up(testbed.load(file), name=LAB)
    shell = (sys.executable, "-m", "testbed", "exec", LAB, "h1", "--", "true")

    def inside() -> None:
        lab.exec("h1", ("true",)).check_returncode()

    def whole() -> None:
        subprocess.run(shell, check=True, env=environment())

    try:
        yield {"testbed": lambda: timed(inside), "testbed-cli": lambda: timed(whole)}
    finally:
        lab.down()


def sample(ways: Mapping[str, Way], rounds: Mapping[str, int], seed: int) -> dict[str, list[float]]:
    """Take all samples, in random order."""
    order = [name for name in ways for _ in range(rounds[name])]
    random.Random(seed).shuffle(order)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # a first time, for what only the first time costs
    for name in order:
        found[name].append(ways[name]())
    return found


def goals(median: Mapping[str, float]) -> Iterator[Goal]:
    """Yield every goal whose sides were measured."""
    if {"testbed", "subprocess"} <= median.keys():
        yield Goal("exec, testbed / subprocess", median["testbed"] / median["subprocess"], "<=", 2)
    if "testbed-cli" in median:
        yield Goal("exec, whole command, ms", 1000 * median["testbed-cli"], "<=", 150)


def show(found: Mapping[str, Sequence[float]], median: Mapping[str, float]) -> None:
    """Print milliseconds and ratios."""
    print(" " * 14 + "".join(f"{head:>12}" for head in ("median ms", "p10 ms", "p90 ms", "/subprocess")))
    for name, seconds in found.items():
        deciles = statistics.quantiles(seconds, n=10)
        ratio = f"{median[name] / median['subprocess']:.2f}" if "subprocess" in median else "-"
        row = (*(f"{1000 * value:.3f}" for value in (median[name], deciles[0], deciles[-1])), ratio)
        print(f"{name:14}" + "".join(f"{value:>12}" for value in row))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--cli-rounds", type=int, default=20)
    parser.add_argument("--ways", type=names(WAYS), default=WAYS)
    parser.add_argument("--seed", type=int, default=1, help="of the random order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples and goals")
    parser.add_argument("--mininet", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, show, judge."""
    given = arguments()
    if given.mininet:
        answer_for_mininet()
        return 0
    if os.geteuid() != 0:
        give_up("the peers need root: run this as root")
    os.nice(-20)
    with (
        tempfile.TemporaryDirectory(prefix="testbed-benchmark-") as temporary,
        contextlib.ExitStack() as open_ways,
    ):
        folder = Path(temporary)
        sys.path.insert(0, environment()["PYTHONPATH"])
        ways: dict[str, Way] = {"subprocess": lambda: timed(lambda: subprocess.run(["true"], check=True))}
        for prefix, provide in (("testbed", testbed_ways), ("mininet", mininet_ways)):
            if any(name.startswith(prefix) for name in given.ways):
                ways |= open_ways.enter_context(provide(folder))
        rounds = {name: given.cli_rounds if name == "testbed-cli" else given.rounds for name in WAYS}
        found = sample({name: ways[name] for name in given.ways}, rounds, given.seed)
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    verdicts = tuple(goals(median))
    show(found, median)
    print()
    for goal in verdicts:
        print(goal)
    if given.json:
        record = {"samples": found, "goals": [asdict(goal) | {"met": goal.met} for goal in verdicts]}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(not all(goal.met for goal in verdicts))


if __name__ == "__main__":
    sys.exit(main())
