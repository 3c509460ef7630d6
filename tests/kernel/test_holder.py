"""The holder waits for nobody: whoever talks to it badly, slowly or not at all harms no one else."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import __version__, control, load, messages, sandbox, up
from testbed.control import RunningLab
from testbed.errors import InputError, LabError
from tests.conftest import ROOT
from tests.kernel.remains import awaited, driver

pytestmark = pytest.mark.kernel

TWO = ROOT / "topologies/two-hosts.yaml"


@pytest.fixture
def lab(name: str) -> Iterator[RunningLab]:
    with up(load(TWO), name) as found:
        yield found


def works(lab: RunningLab) -> bool:
    return lab.exec("client", ("cat",), input=b"still here").stdout == "still here"


def frame(content: bytes) -> bytes:
    return struct.pack("=I", len(content)) + content


NONSENSE = {
    "nothing": b"",
    "half a length": b"\1",
    "half a message": frame(pickle.dumps((__version__, "status", ())))[:-1],
    "no pickle": frame(b"no pickle at all"),
    "no request": frame(pickle.dumps(None)),
    "no such verb": frame(pickle.dumps((__version__, "no such verb", ()))),
    "half a pickle": frame(pickle.dumps((__version__, "exec", ("client",)))[:-3] + b"\xff\xff\xff"),
    "an absurd length": b"\xff" * 64,
}


@pytest.mark.parametrize("sent", NONSENSE.values(), ids=NONSENSE)
def test_a_client_that_sends_nonsense_or_half_a_message_stops_nobody(lab: RunningLab, sent: bytes) -> None:
    with control.connect(lab.name) as silent:
        silent.sendall(sent)
        assert works(lab)
    assert works(lab)


def test_a_client_that_reads_no_answers_stops_nobody(lab: RunningLab) -> None:
    with control.connect(lab.name) as deaf:
        deaf.setblocking(False)
        asks = frame(pickle.dumps((__version__, "look", ("client",)))) * 100_000
        with pytest.raises(BlockingIOError):
            deaf.sendall(asks)
        assert works(lab)
    assert works(lab)


def test_sixty_clients_at_once_are_all_answered(lab: RunningLab) -> None:
    clients = [control.connect(lab.name) for _ in range(60)]
    for client in clients:
        messages.send(client, (__version__, "status", ()))
    for client in clients:
        assert control.answer(lab.name, client)["name"] == lab.name
        client.close()


def test_a_lab_of_another_version_says_so_and_can_be_taken_down(lab: RunningLab) -> None:
    with control.connect(lab.name) as newer:
        messages.send(newer, ("99.0", "change", ([], [], {}, "", "one more")))
        with pytest.raises(LabError, match=f"made by testbed {__version__}.*testbed down {lab.name}"):
            control.answer(lab.name, newer)
    with control.connect(lab.name) as newer:
        messages.send(newer, ("99.0", "down", ()))
        control.answer(lab.name, newer)


def test_a_command_ends_with_the_program_that_asked_for_it(lab: RunningLab) -> None:
    asking = (
        "import sys; from testbed import control\n"
        "control.find(sys.argv[1]).exec('client', ['sh', '-c', 'sleep 1000 & touch /run/testbed/began; wait'])"
    )
    process = subprocess.Popen((sys.executable, "-c", asking, lab.name))
    while lab.exec("", ("test", "-e", "/run/testbed/began")).returncode:
        assert process.poll() is None
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while "sleep 1000" in lab.exec("", ("ps", "-e", "-o", "args")).stdout:
        assert time.monotonic() < deadline, "the command and its children are killed"


def test_an_exec_that_is_interrupted_ends_alone(lab: RunningLab) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            lab.exec("client", ("sleep", "1000"))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert lab.exec("client", ("sh", "-c", "exit 5")).returncode == 5, "its own status, not that of the one before"
    deadline = time.monotonic() + 5
    while "sleep 1000" in lab.exec("", ("ps", "-e", "-o", "args")).stdout:
        assert time.monotonic() < deadline


def test_a_change_goes_on_without_the_program_that_asked_for_it(tmp_path: Path, name: str) -> None:
    file = tmp_path / "lab.yaml"
    nodes = "name: half\nnodes: {a: {}, b: {}}\nlinks: [{ends: [a:eth0, b:eth0], rate: %s}]\n"
    file.write_text(nodes % "5mbit")
    with driver(tmp_path, name) as line:
        assert line.run("up", "../lab.yaml", "--name", name) == 0
        file.write_text((nodes % "9mbit").replace("b: {}", "b: {commands: [[sleep, '0.5']]}"))
        cli = line.begin("up", "../lab.yaml", "--name", name)
        awaited(line, "sleep 0.5")
        os.kill(cli, signal.SIGKILL)
        assert line.end() == -signal.SIGKILL
        lab = control.find(name)
        while lab.status()["state"] == "changing":
            lab.exec("a", ("true",))
        assert line.run("up", "../lab.yaml", "--name", name) == 0
        assert f"lab {name} unchanged" in line.said()
        assert "rate 9Mbit" in lab.exec("a", ("tc", "qdisc", "show", "dev", "eth0")).stdout


def test_a_change_that_the_kernel_refuses_can_be_mended(tmp_path: Path, name: str) -> None:
    file = tmp_path / "lab.yaml"
    good = "name: half\nnodes: {a: {%s}, b: {}}\nlinks: [{ends: [a:eth0, b:eth0], addresses: [%s, 10.9.0.2/24]}]\n"
    one, two = "10.9.0.1/24", "[10.9.0.1/24, 10.9.0.7/24]"
    # The second address stands when what follows it is refused.
    steps = (("", one, 0), ("routes: [{to: 10.7.0.0/24, via: 10.9.0.255}]", two, 3), ("", two, 0), ("", one, 0))
    with driver(tmp_path, name) as line:
        for more, addresses, status in steps:
            file.write_text(good % (more, addresses))
            assert line.run("up", "../lab.yaml", "--name", name) == status, line.said()
            if status == 0:
                assert line.run("up", "../lab.yaml", "--name", name) == 0
                assert f"lab {name} unchanged" in line.said()
        held = control.find(name).exec("a", ("ip", "-4", "-o", "addr", "show", "dev", "eth0")).stdout
        assert "10.9.0.1/24" in held
        assert "10.9.0.7/24" not in held


def test_a_lab_ends_with_the_process_that_made_it_unless_it_is_kept(name: str) -> None:
    making = (
        "import sys, testbed\nlab = testbed.up(testbed.load(sys.argv[1]), sys.argv[2])\nif sys.argv[3:]: lab.keep()"
    )
    words = (sys.executable, "-c", making, str(TWO), name)
    subprocess.run(words, check=True)
    deadline = time.monotonic() + 5
    while name in sandbox.names():
        assert time.monotonic() < deadline
    subprocess.run((*words, "keep"), check=True)
    assert works(control.find(name))


def test_a_caller_without_input_and_output_gets_a_lab_too(name: str) -> None:
    words = f"exec {sys.executable} -m testbed up {TWO} --name {name} <&- >&-"
    subprocess.run(("sh", "-c", words), check=True)
    assert works(control.find(name))


def test_a_name_that_is_none_is_refused_before_anything_is_made() -> None:
    for name in ("Big", "two words", "a/b", "", "x" * 60):
        with pytest.raises(InputError, match="--name") if name else pytest.raises(InputError):
            up(load(TWO), name or "-")


def test_signals_and_handlers_of_the_caller_do_not_live_in_the_lab(name: str) -> None:
    making = (
        "import signal, sys, testbed\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit('the caller was resumed'))\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "with testbed.up(testbed.load(sys.argv[1]), sys.argv[2]) as lab:\n"
        "    print(lab.exec('client', ['sh', '-c', 'exit 3']).returncode)\n"
        "    print(lab.exec('client', ['grep', '-E', 'Sig(Blk|Ign)', '/proc/self/status']).stdout)\n"
    )
    words = (sys.executable, "-c", making, str(TWO), name)
    said = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    assert said[0] == "3"
    assert int(said[2], 16) == 0, "no signal is blocked in a command"
    assert int(said[4], 16) & 0x7FFFFFFF == 0, "and none ignored"
