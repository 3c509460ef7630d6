"""What `testbed report` takes for the folder of one run: of one among 500, and of a single one. It must be the same.

    python benchmarks/reporting.py [--cases 500] [--repeats 11] [--json FILE]

CPU time of the command, in turn; the ratio of the medians. Exit status 1: the goal fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from testbed import results  # noqa: E402
from testbed.loading import read  # noqa: E402
from testbed.plan.lab import plan  # noqa: E402
from testbed.runs import written  # noqa: E402
from testbed.runs.invocation import begin, invoked  # noqa: E402

GOAL = 1.1  # times the CPU time for a folder among many
RAW = ROOT / "tests/recorded/several/runs/rate=20mbit/2"


def made(root: Path, cases: int) -> Path:
    """Return the folder of a run in the middle of so many, with the raw files of a recorded one."""
    file = root / f"{cases}.yaml"
    rates = json.dumps([f"{20_000_000 + n}bit" for n in range(cases)])
    text = (ROOT / "docs/examples/rates.yaml").read_text().replace("../../topologies", str(ROOT / "topologies"))
    file.write_text(text.replace("[10mbit, 20mbit]", rates).replace("repeat: 2", "repeat: 1"))
    experiment = read(file)
    case = experiment.cases[cases // 2]
    folder = begin(invoked(experiment, root / f"results-{cases}", ()), cases // 2)
    texts, _ = written.texts(case, experiment.seed, plan(case.topology))
    shutil.copytree(RAW, folder.path, dirs_exist_ok=True)
    results.fill(folder, texts, json.loads((RAW / "manifest.json").read_text()))
    return folder.path


def once(folder: Path) -> float:
    """Return the seconds of CPU time that a report takes."""
    with subprocess.Popen(
        (sys.executable, "-m", "testbed", "report", str(folder)), cwd=ROOT, stdout=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folders = [made(Path(work), 1), made(Path(work), asked.cases)]
        for folder in folders:
            once(folder)  # what is read from the disk at first
        times: list[list[float]] = [[], []]
        for _ in range(asked.repeats):
            for found, folder in zip(times, folders, strict=True):
                found.append(once(folder))
    alone, among = map(median, times)
    print(f"report: {alone * 1e3:.0f} ms of CPU time alone, {among * 1e3:.0f} ms among {asked.cases}", end="")
    print(f": {among / alone:.2f} times (goal {GOAL})")
    if asked.json is not None:
        asked.json.write_text(json.dumps({"alone": alone, "among": among, "cases": asked.cases}))
    return int(among / alone > GOAL)


if __name__ == "__main__":
    sys.exit(main())
