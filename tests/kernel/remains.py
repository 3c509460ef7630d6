"""What is left of one lab, told apart from all that other tests and other people do on this machine meanwhile.

Every process of a lab inherits its command line's environment, in which a test puts a mark of its own; network
namespaces get an id (RTM_NEWNSID), in a namespace that we may change, that goes with them; everything else bears the
lab's name.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from testbed.lab import reach
from testbed.lab.control import RunningLab
from testbed.linux import cgroups, netlink, wire

MARK = "TESTBED_MARK"
COPIES = ("sampler", "sender", "receiver")  # of the holder, with its command line (testbed/lab/forked.py)
_RTM_NEWNSID, _RTM_GETNSID, _NETNSA_NSID, _NETNSA_FD = 88, 90, 1, 3
_PLACES = tuple(map(Path, ("/run", "/run/netns", "/tmp", "/var/tmp", "/dev/shm", "/sys/class/net")))
Remains = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a lab as seen from here."""

    pid: int
    words: str


def marked(mark: str) -> list[Process]:
    """Return the processes that live with a mark in their environment; zombies do not."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    name = (entry / "comm").read_text().strip()
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found.append(Process(int(entry.name), name if name in COPIES else line))
    return sorted(found, key=lambda p: p.pid)


_SOCKET = """
import socket, sys
from testbed.linux import netlink, wire
there, made = socket.socket(fileno=int(sys.argv[1])), netlink.connect(wire.NETLINK_ROUTE)
socket.send_fds(there, [b"socket"], [made.fileno()])
"""


@cache
def _where_ids_are() -> socket.socket:
    """Return an rtnetlink socket of an empty network namespace, which who made its user namespace may change."""
    ours, theirs = socket.socketpair()
    spaces = ("--net", *(("--user", "--map-root-user") if os.geteuid() else ()))
    with ours, theirs:
        words = ("unshare", *spaces, sys.executable, "-c", _SOCKET, str(theirs.fileno()))
        subprocess.run(words, pass_fds=(theirs.fileno(),), check=True)
        _, (fd,), _, _ = socket.recv_fds(ours, 16, 1)
    return socket.socket(fileno=fd)


def tag(lab: RunningLab) -> set[int]:
    """Give every network namespace of a lab an id, and return the ids: each lives as long as its namespace."""
    found = set()
    for link in Path(f"/proc/{lab.holder}/fd").iterdir():
        with suppress(FileNotFoundError):
            if os.readlink(link).startswith("net:"):
                fd = os.open(link, os.O_RDONLY)
                number = random.randrange(1 << 20, 1 << 31)
                body = bytes(4) + struct.pack("=HHi", 8, _NETNSA_NSID, number) + wire.u32(_NETNSA_FD, fd)
                refused = netlink.transact(_where_ids_are(), [wire.Message(_RTM_NEWNSID, 0, body)])
                os.close(fd)
                assert not refused, refused[0]
                found.add(number)
    assert found, "a lab has namespaces"
    return found


def _tags() -> set[int]:
    entries = netlink.dump(_where_ids_are(), _RTM_GETNSID, bytes(4))
    return {int(struct.unpack("=i", wire.attributes(e, 4)[_NETNSA_NSID])[0]) for e in entries}


def _groups() -> set[Path]:
    found = cgroups.find()
    return {*found.separate.values(), *filter(None, (found.unified,))}


def remains(name: str, tags: set[int] | None = None) -> Remains:
    """Return what there is of a lab by kind, apart from its processes."""
    # A lab's mounts are in its own mount namespace: here there is none at all, of whatever lab.
    mounts = [row.split() for row in Path("/proc/self/mountinfo").read_text().splitlines()]
    found = {
        "socket": [name] if name in reach.names() else [],
        "netns": [str(t) for t in (tags & _tags() if tags else ())],
        "mount": [m[4] for m in mounts if m[-2] == "testbed" or "nsfs" in m[-3:]],
        "cgroup": [str(f) for p in _groups() for f in p.glob(f"{cgroups.PREFIX}{name}-*")],
        "file": [str(f) for p in _PLACES if p.is_dir() for f in p.iterdir() if name in f.name],
    }
    return {kind: rows for kind, rows in found.items() if rows}


def settled(look: Callable[[], Remains], patience: float = 10.0) -> Remains:
    """Return what is left in the end; what is on its way out is given some time."""
    deadline = time.monotonic() + patience
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


@dataclass(frozen=True, slots=True)
class Driver:
    """A command line whose modules are loaded, so that a moment of `up` is one of the lab and not of an import.

    It forks a `testbed` for every request, in a folder (`work`) and with a TMPDIR of its own.
    """

    folder: Path
    mark: str
    process: subprocess.Popen[str]

    def begin(self, *argv: str) -> int:
        """Start a `testbed` and return its process id."""
        assert self.process.stdin is not None
        print(*argv, sep="\t", file=self.process.stdin, flush=True)
        return int(self.read())

    def end(self) -> int:
        """Return the exit status of the `testbed` that was begun last, negative for a signal."""
        return os.waitstatus_to_exitcode(int(self.read()))

    def run(self, *argv: str) -> int:
        """Run a `testbed` to its end."""
        self.begin(*argv)
        return self.end()

    def said(self) -> str:
        """Return what the last one wrote."""
        return (self.folder / "said").read_text()

    def processes(self) -> list[Process]:
        """Return the processes of the command line and of its labs."""
        return [p for p in marked(self.mark) if p.pid != self.process.pid]

    def remains(self, name: str, tags: set[int] | None = None) -> Remains:
        """Return what is left of a lab in the end."""

        def look() -> Remains:
            found = remains(name, tags)
            if processes := [f"{p.pid} {p.words}" for p in self.processes()]:
                found["process"] = processes
            if files := [str(f) for d in ("tmp", "work") for f in (self.folder / d).iterdir() if f.name != "results"]:
                found["file"] = [*found.get("file", []), *files]
            return found

        return settled(look)

    def read(self) -> str:
        """Return what the driver says next."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()


_FORKS = """
import os, sys
from testbed.lab import changes
from testbed.cli import app as cli
from testbed import loading
from testbed.report import report
from testbed.runs import case as runner, bring_up as start
from testbed.plan import run as schedule
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        said = os.open("../said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for fd, number in ((os.open(os.devnull, os.O_RDONLY), 0), (said, 1), (said, 2)):
            os.dup2(fd, number)
        sys.argv = ["testbed", *line.rstrip("\\n").split("\\t")]
        cli.main()
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@contextmanager
def driver(folder: Path, mark: str) -> Iterator[Driver]:
    """Yield a driver; at the end nothing of what it began lives on, even when a test has failed."""
    for name in ("tmp", "work"):
        (folder / name).mkdir(parents=True)
    env = {**os.environ, MARK: mark, "TMPDIR": str(folder / "tmp")}
    words = (sys.executable, "-c", _FORKS)
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=env, cwd=folder / "work") as process:
        found = Driver(folder, mark, process)
        try:
            assert found.read() == "ready\n"
            yield found
        finally:
            for left in found.processes():
                with suppress(ProcessLookupError):
                    os.kill(left.pid, signal.SIGKILL)


def awaited(line: Driver, words: str) -> Process:
    """Return the process of a lab with this command line as soon as there is one."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for process in line.processes():
            if process.words.startswith(words):
                return process
        time.sleep(0.005)
    raise AssertionError(f"there is no {words}: {line.processes()}: {line.said()}")
