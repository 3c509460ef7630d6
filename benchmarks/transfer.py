"""The processor time that a byte of a transfer takes, beside one of iperf3's, over a link of 1 gbit in one run.

    python benchmarks/transfer.py [--rounds 5] [--seconds 3] [--rate 1gbit] [--json FILE]

Both ends count, and both kinds take turns. Exit status 1: the goal fails; 2: something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOAL = 1.5  # times iperf3's
PORT = 5201
sys.path.insert(0, str(ROOT))


from testbed.linux import calls  # noqa: E402 (found by its path)
from testbed.programs.transfer.main import main as main_of_transfer  # noqa: E402


def node() -> subprocess.Popen[str]:
    """Start a process that keeps a network namespace."""
    words = ("unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 3600")
    made = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    if made.stdout.readline() != "up\n":
        raise SystemExit("testbed: it takes root to make network namespaces")
    return made


def inside(of: subprocess.Popen[str], *words: str) -> tuple[str, ...]:
    """Return the command that runs words in a node's namespace."""
    return ("nsenter", "--net", "--target", str(of.pid), *words)


def joined(rate: str) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Return two nodes with a link of a rate."""
    nodes = node(), node()
    subprocess.run(
        inside(nodes[0], "ip", "link", "add", "e0", "type", "veth", "peer", "e0", "netns", str(nodes[1].pid)),
        check=True,
    )
    for n, one in enumerate(nodes):
        for words in (
            ("ip", "address", "add", f"10.0.0.{n + 1}/24", "dev", "e0"),
            ("ip", "link", "set", "e0", "up"),
            ("tc", "qdisc", "add", "dev", "e0", "root", "tbf", "rate", rate, "burst", "200kb", "latency", "5ms"),
        ):
            subprocess.run(inside(one, *words), check=True)
    return nodes


def listening(one: subprocess.Popen[str]) -> None:
    """Wait until something listens on the port."""
    mark = f":{PORT:04X}"
    while not any(
        row.split()[1].endswith(mark) and row.split()[3] == "0A"
        for family in ("tcp", "tcp6")
        for row in Path(f"/proc/{one.pid}/net/{family}").read_text().splitlines()[1:]
    ):
        time.sleep(0.01)


def copied(one: subprocess.Popen[str], *words: str) -> int:
    """Start an end of a transfer as a lab does, in a copy of this process, and return its PID."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            with Path(f"/proc/{one.pid}/ns/net").open() as space:
                calls.setns(space.fileno(), calls.CLONE_NEWNET)
            main_of_transfer((f"port={PORT}", *words))
            status = 0
        finally:
            os._exit(status)
    return pid


def spent(*pids: int) -> float:
    """Wait for both ends and return the processor time (s) that they took."""
    total = 0.0
    for pid in pids:
        _, status, usage = os.wait4(pid, 0)
        if status:
            print(f"a program ended with status {status}", file=sys.stderr)
            raise SystemExit(2)
        total += usage.ru_utime + usage.ru_stime
    return total


def transfer(nodes: tuple[subprocess.Popen[str], ...], seconds: float, folder: Path) -> tuple[float, int]:
    """Return the processor time of a transfer, and its bytes."""
    both = f"seconds={seconds}"
    server = copied(nodes[1], both, "receives=1", f"out={folder}/s")
    listening(nodes[1])
    used = spent(copied(nodes[0], both, "sends=1", "connect=10.0.0.2", f"out={folder}/c"), server)
    return used, sum(c["got"] for c in json.loads((folder / "s.json").read_text())["connections"])


def iperf3(nodes: tuple[subprocess.Popen[str], ...], seconds: float, folder: Path) -> tuple[float, int]:
    """Return the processor time of an iperf3 as a lab runs it, and its bytes."""
    words = ("-p", str(PORT), "-i", "0.1", "-J", "--logfile")
    server = subprocess.Popen(inside(nodes[1], "iperf3", "-s", "-1", *words, f"{folder}/server.json"))
    listening(nodes[1])
    client = ("iperf3", "-c", "10.0.0.2", "-t", str(int(seconds)), *words, f"{folder}/iperf3.json")
    used = spent(subprocess.Popen(inside(nodes[0], *client)).pid, server.pid)
    said = json.loads((folder / "iperf3.json").read_text())
    (folder / "iperf3.json").unlink()
    (folder / "server.json").unlink()
    return used, int(said["end"]["sum_received"]["bytes"])


def main() -> int:
    """Measure both kinds in random order, print a table, and say whether the goal is met."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3)
    options.add_argument("--rate", default="1gbit")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    if not shutil.which("iperf3"):
        print("iperf3 is not in PATH", file=sys.stderr)
        return 2
    kinds = {"iperf3": iperf3, "transfer": transfer}
    found: dict[str, list[tuple[float, int]]] = {kind: [] for kind in kinds}
    nodes = joined(asked.rate)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(asked.rounds):
                for kind in random.sample(sorted(kinds), len(kinds)):
                    found[kind].append(kinds[kind](nodes, asked.seconds, Path(folder)))
    finally:
        for one in nodes:
            one.kill()
    each = {kind: statistics.median(used / size for used, size in rows) for kind, rows in found.items()}
    for kind, rows in found.items():
        rate = statistics.median(size for _, size in rows) * 8e-6 / asked.seconds
        print(f"{kind:10} {each[kind] * 1e9:8.3f} ns/byte  {rate:8.1f} Mbit/s")
    ratio = each["transfer"] / each["iperf3"]
    met = ratio <= GOAL
    print(f"{'pass' if met else 'FAIL'}  processor time of a byte: {ratio:.2f} x iperf3's (goal: at most {GOAL})")
    if asked.json is not None:
        asked.json.write_text(json.dumps({"ns_per_byte": each, "ratio": ratio, "runs": found}) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
