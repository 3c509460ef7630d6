"""What campaigns do with whole labs: a topology of many programs, and what must hold when one of them was disturbed."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from testbed.errors import LabError
from testbed.lab import control, reach
from tests.kernel.remains import Driver, Process, driver

LAB = """
name: disturbed
nodes: {a: {commands: [[sleep, "0.02"]]}, b: {}, c: {router: {}}, m: {mptcp: {}}, k: {mptcp: {}}}
links:
  - {ends: [a:eth0, c:eth0], rate: 50mbit}
  - {ends: [c:eth1, b:eth0]}
  - {ends: [m:eth0, k:eth0], rate: 20mbit}
workloads:
  bulk: {iperf3: {from: a, to: b, seconds: 1}}
  echo: {ping: {from: a, to: b, seconds: 1, interval: 100ms}}
  command: {command: {node: b, argv: [sh, -c, "sleep 1 & (setsid sleep 300 &) ; wait $!"]}}
capture: ["a:eth0"]
events: [{at: 500ms, node: a, command: [sh, -c, "sleep 0.2"]}]
resources: {pids: 400, memory: 1gb}
"""
STATUSES = (0, 1, 3, -signal.SIGKILL)  # how a command may end whose lab was disturbed


@contextmanager
def begun() -> Iterator[tuple[Driver, str]]:
    """Yield a command line that is loaded already, with the topology as ../lab.yaml, and a name for its labs."""
    name = f"f{uuid4().hex[:10]}"
    with tempfile.TemporaryDirectory(prefix="testbed-fuzz-") as folder:
        (Path(folder) / "lab.yaml").write_text(LAB)
        with driver(Path(folder), name) as line:
            yield line, name


def signalled(victim: Process | None, number: int) -> str:
    """Send a signal to a process that may have ended; return words for what was done."""
    if victim is not None:
        with suppress(ProcessLookupError):
            os.kill(victim.pid, number)
    return f"{signal.Signals(number).name} to {victim.words if victim else 'nobody'}"


def chosen(line: Driver, chance: random.Random) -> Process | None:
    """Return any process of the command line or of its lab."""
    alive = line.processes()
    return chance.choice(alive) if alive else None


def settle(line: Driver, name: str) -> str:
    """Take a lab down that is up, which then must work; return what is left, or does not work, "" when all is well."""
    with suppress(LabError):
        lab = control.find(name)
        if lab.status()["state"] == "up" and lab.exec("a", ("ping", "-c1", "-W2", "b")).returncode:
            return "the lab is up, and a does not reach b"
    if name in reach.names() and line.run("down", name) and name in reach.names():
        return f"down: {line.said()}"
    left = line.remains(name)
    return f"left behind: {left}" if left else ""
