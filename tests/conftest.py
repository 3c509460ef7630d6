"""What every test may use, and the rule for all: a run of the suite leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from testbed.lab import reach

ROOT = Path(__file__).parent.parent
REQUIRED = frozenset(filter(None, os.environ.get("TESTBED_REQUIRE", "").split(",")))

# Linux 6.18 on a busy machine, once in some dozens of MPTCP transfers: where the first data of a joining subflow comes
# before the socket's owner lets go of it, mptcp_subflow_joined() (net/mptcp/protocol.c) moves the mapping of that data
# to the connection's present sequence number. Seen in a capture: 145 bytes mapped 4 bytes further than the
# acknowledged ones were acknowledged as if they had followed them. Iperf3's server then can't parse its parameters.
RACE = "unable to receive parameters from client"


SUITE = "TESTS_SUITE"  # in the environment of all that this run of the suite starts: which one it is
MACHINE = "TESTS_MACHINE"  # in the environment of tests whose labs are elsewhere (tests/machine/test_the_same.py)


def where() -> tuple[str, ...]:
    """Return the words of `up` and `run` that say on which machine the labs of the present test are."""
    return ("--machine", os.environ[MACHINE]) if MACHINE in os.environ else ()


def testbed(*argv: str, timeout: float = 300, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end; again where the kernel lost a byte stream's order (see RACE)."""
    words = (sys.executable, "-m", "testbed", *argv)
    words += where() if argv[0] in ("up", "run") and not {"--machine", "-m"} & set(argv) else ()
    for _ in range(3):
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False, **options)  # type: ignore[call-overload]
        if RACE not in done.stderr:
            break
    return done  # type: ignore[no-any-return]


testbed.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name begins with


@pytest.fixture
def name() -> Iterator[str]:
    """A lab's name that no other test has; the lab is taken down at the end if the test left it up."""
    chosen = f"t{uuid4().hex[:10]}"
    yield chosen
    from testbed.lab import control
    from testbed.machines.guest import microvm

    if chosen in reach.names():
        control.find(chosen).down()
    if chosen in microvm.guests():
        microvm.stop(microvm.find(chosen))


Need = Callable[..., None]


@pytest.fixture
def need() -> Need:
    """A function that skips with the probe's words when a feature is missing, and fails if CI requires it."""
    from testbed import features
    from testbed.machines.probe import here

    def check(*names: str) -> None:
        wanted = [f for f in features.ALL if f.name in names]
        assert len(wanted) == len(names), f"unknown feature in {names}"
        for found in here.probe(wanted):
            if not found.present:
                words = f"feature {found.feature.name}: {found.known}; {found.feature.cure}"
                if found.feature.name in REQUIRED:
                    pytest.fail(f"TESTBED_REQUIRE asks for it: {words}")
                pytest.skip(words)

    return check


def traces(suite: str) -> dict[str, frozenset[str]]:
    """Everything that a lab of this suite could leave on this machine, by kind.

    Others have labs as well: a process is ours if it has the suite's mark in its environment, as a namespace is that
    it lives in, and a socket that it has open.
    """
    processes, spaces, opened = set(), set(), set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            comm = (entry / "comm").read_text().strip()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z" or f"{SUITE}={suite}".encode() not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            if comm.startswith("testbed:"):
                processes.add(f"{entry.name} {comm}")
            spaces.add(os.readlink(entry / "ns/net"))
            opened |= {os.readlink(fd) for fd in (entry / "fd").iterdir()}
        except OSError:
            continue
    mounts = {row.split()[4] for row in Path("/proc/self/mountinfo").read_text().splitlines()}
    rows = [r.split() for r in Path("/proc/net/unix").read_text().splitlines() if "@testbed/" in r]
    sockets = {r[7] for r in rows if f"socket:[{r[6]}]" in opened}
    folders = [Path("/run/netns"), Path("/run/testbed"), Path("/dev/shm"), Path("/sys/class/net")]
    files = {str(f) for folder in folders if folder.is_dir() for f in folder.iterdir()}
    return {
        k: frozenset(v)
        for k, v in {
            "process": processes,
            "netns": spaces,
            "mount": mounts,
            "socket": sockets,
            "file": files,
        }.items()
    }


def left(before: dict[str, frozenset[str]], suite: str, patience: float = 5.0) -> dict[str, list[str]]:
    """What is there now and was not before; what is on its way out is given some time."""
    deadline = time.monotonic() + patience
    while True:
        found = {kind: sorted(now - before[kind]) for kind, now in traces(suite).items() if now - before[kind]}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def pytest_configure(config: pytest.Config) -> None:
    # Nothing is remembered from before, and nothing afterwards; the workers inherit it.
    if not hasattr(config, "workerinput"):
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "testbed")
        os.environ["XDG_CACHE_HOME"] = config.stash[_CACHE] = tempfile.mkdtemp(prefix="testbed-tests-")
        # But for the guest's image: what is made of the same recipe is the same, and it takes minutes.
        for kept in ("images", "sources"):
            (user / kept).mkdir(parents=True, exist_ok=True)
            here = Path(config.stash[_CACHE], "testbed", kept)
            here.parent.mkdir(exist_ok=True)
            here.symlink_to(user / kept)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a test that `make test` would not find: to collect all of them takes seconds, so it names their places."""
    for mark, homes in (
        ("machine", ("tests/machine/",)),
        ("quiet", ("tests/machine/", "tests/kernel/", "tests/test_docs")),
    ):
        lost = [i.nodeid for i in items if i.get_closest_marker(mark) and not i.nodeid.startswith(homes)]
        if lost:
            raise pytest.UsageError(f"tests that are marked `{mark}` belong in {' or '.join(homes)}: {lost}")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(config.stash[_CACHE])


def pytest_sessionstart(session: pytest.Session) -> None:
    # In the process that starts the workers, and in no worker: the others are busy while one ends.
    if not hasattr(session.config, "workerinput"):
        os.environ[SUITE] = uuid4().hex
        session.config.stash[_BEFORE] = traces(os.environ[SUITE])


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput") and (found := left(session.config.stash[_BEFORE], os.environ[SUITE])):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        sys.stderr.write(f"\nERROR: the suite left something behind: {found}\n")


_CACHE: pytest.StashKey[str] = pytest.StashKey()
_BEFORE: pytest.StashKey[dict[str, frozenset[str]]] = pytest.StashKey()
