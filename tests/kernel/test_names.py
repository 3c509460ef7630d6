"""A lab's name is believed only of its owner: what another user binds is nobody's lab, and keeps nobody waiting."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from testbed import __version__, load, up
from testbed.errors import LabError
from testbed.lab import asked, asking, control, messages, reach
from testbed.linux import calls
from testbed.linux import unix_diag as names
from tests.conftest import ROOT, testbed
from tests.kernel.others import NOBODY, as_other

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="plays another user"),
]
TWO = ROOT / "topologies/two-hosts.yaml"
RED = "evil\x1b]0;OWNED\x07\x1b[31mRED"


@contextmanager
def squatting(name: str, *, listening: bool = True, family: str = "testbed", full: bool = True) -> Iterator[None]:
    """Let another user have bound a name of ours, and accept nothing: soon the backlog is full."""
    ready, tell = os.pipe()
    ours, theirs = socket.socketpair()

    def squat() -> None:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"\0{family}/0/{name}")
            if listening:
                bound.listen(0 if full else 16)
            waits = []
            with suppress(BlockingIOError):
                while full and listening:
                    waits.append(socket.socket(socket.AF_UNIX))
                    waits[-1].setblocking(False)
                    waits[-1].connect(f"\0{family}/0/{name}")
            os.write(tell, b"1")
            theirs.recv(1)

    if (child := os.fork()) == 0:
        ours.close()
        os._exit(as_other(squat))
    theirs.close()
    assert os.read(ready, 1) == b"1"
    try:
        yield
    finally:
        ours.close()
        os.waitpid(child, 0)
        for fd in (ready, tell):
            os.close(fd)


@pytest.fixture
def apart() -> Iterator[None]:
    """A network namespace for one test: sockets have names of its own, so `down --all` ends no lab of another test."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    calls.unshare(calls.CLONE_NEWNET)
    try:
        yield
    finally:
        calls.setns(home, calls.CLONE_NEWNET)
        os.close(home)


@pytest.mark.usefixtures("apart")
def test_names_that_another_user_has_bound_are_not_listed_and_stop_nobody(name: str) -> None:
    other = f"a{name}"  # before it
    with (
        up(load(TWO), name) as lab,
        squatting(other),
        squatting(RED),
        squatting(RED, family="testbed-guest"),
        squatting(f"b{name}", listening=False),
        squatting(f"c{name}", full=False, family="testbed-guest"),
    ):
        assert (other, NOBODY) in names.owned("testbed/0/"), "the test plays it"
        began = time.monotonic()
        for words in (("status",), ("status", "--json")):
            done = testbed(*words)
            assert done.returncode == 0
            assert name in done.stdout
            for word in (other, "OWNED", "\x1b", f"b{name}", f"c{name}"):
                assert word not in done.stdout + done.stderr
        lab.keep()
        done = testbed("down", "--all")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"lab {name} is down\n" in done.stdout
        assert other not in done.stdout
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(("listening", "full"), [(True, True), (True, False), (False, False)])
def test_a_name_that_another_user_has_bound_is_said_with_what_to_do(name: str, listening: bool, full: bool) -> None:
    with squatting(name, listening=listening, full=full):
        for words in (
            ("up", str(TWO), "--name", name, "--machine", "here"),
            ("exec", name, "client", "--", "true"),
            ("status", name),
            ("down", name),
        ):
            done = testbed(*words, timeout=30)
            assert done.returncode == (125 if words[0] == "exec" else 3), done.stdout
            assert f"lab {name}: another user of this machine (uid {NOBODY}) uses this name" in done.stderr, words
            assert "choose another name (`--name`)" in done.stderr
    assert testbed("up", str(TWO), "--name", name).returncode == 0
    assert testbed("down", name).returncode == 0


def test_names_are_known_without_unix_diag_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: bytes) -> Iterator[tuple[str, int]]:
        raise OSError("this kernel has no unix_diag")

    monkeypatch.setattr(names, "_asked", absent)
    with up(load(TWO), name), squatting(f"a{name}", full=False), squatting(f"b{name}", listening=False):
        assert (name, 0) in names.owned("testbed/0/")
        assert (f"a{name}", NOBODY) in names.owned("testbed/0/")
        assert name in reach.names()
        assert f"a{name}" not in reach.names()
        assert f"b{name}" not in reach.names()


def test_a_name_of_ours_that_is_no_name_of_a_lab_is_not_listed(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(f"\0testbed/0/{name}\x1b[31m")
        odd.listen()
        assert not [n for n in reach.names() if n.startswith(name)]


def test_a_holder_that_is_stopped_is_said_to_be_silent_and_down_ends_it_and_the_others(name: str) -> None:
    other = f"z{name}"
    for each in (name, other):
        assert testbed("up", str(TWO), "--name", each).returncode == 0
    stopped = control.find(name)
    os.kill(stopped.holder, signal.SIGSTOP)
    try:
        found = {row["name"]: row["state"] for row in json.loads(testbed("status", "--json").stdout)}
        assert (found[name], found[other]) == ("does not answer", "up")
        done = testbed("status", name, "client", timeout=30)
        assert (done.returncode, done.stdout) == (3, "")
        assert f"lab {name}: its holder, process {stopped.holder}, does not answer" in done.stderr
        done = testbed("exec", name, "client", "--", "true")
        assert done.returncode == 125
        assert f"lab {name}: its holder, process {stopped.holder}, does not answer" in done.stderr
        assert f"(is it stopped?); `testbed down {name}` ends it all the same" in done.stderr
    finally:
        done = testbed("down", name, other, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"lab {name} is down\nlab {other} is down\n"


def test_down_of_several_goes_on_past_one_that_is_not_there(name: str) -> None:
    assert testbed("up", str(TWO), "--name", name).returncode == 0
    done = testbed("down", f"a{name}", name, f"b{name}")
    assert done.returncode == 3
    assert done.stdout == f"lab {name} is down\n"
    assert done.stderr.count("no such lab is up") == 2


def test_the_request_of_exec_is_the_same_in_both_forms(name: str) -> None:
    with up(load(TWO), name) as lab:
        marks = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("uts", "mnt")]
        by_library = asked.encode(asking.Enter("client"))
        by_hand = json.dumps({"version": __version__, "verb": "enter", "node": "client"}).encode()
        for form in (by_library, by_hand):
            with control.connect(name, 5) as connection:
                messages.send(connection, form, marks[:1])
                with pytest.raises(LabError, match="1 descriptors came instead of 2"):
                    control.answer(name, connection)
            assert asking.decode(name, form) == asking.Enter("client")
        for fd in marks:
            os.close(fd)
        assert lab.exec("client", ("true",)).returncode == 0
