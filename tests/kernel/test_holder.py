"""The holder waits for nobody: whoever talks to it badly, slowly or not at all harms no one else."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from testbed import __version__, load, up
from testbed.drivers.facts import Listening
from testbed.drivers.link import AddressAdd, LinkSet, LinksUp, VethAdd
from testbed.drivers.route import RouteAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.drivers.tc import Qdisc, Tbf
from testbed.errors import BugError, InputError, LabError
from testbed.lab import asked, asking, control, listening, messages, reach, sources, travel
from testbed.lab.control import RunningLab
from testbed.steps import Configure, Run, Spawn, Step, Wait, Write
from tests.conftest import ROOT
from tests.kernel.others import as_other, eventually, evil, frame, refused
from tests.kernel.remains import awaited, driver

pytestmark = pytest.mark.kernel

TWO = ROOT / "topologies/two-hosts.yaml"


@pytest.fixture
def lab(name: str) -> Iterator[RunningLab]:
    with up(load(TWO), name) as found:
        yield found


VERSION = re.escape(sources.version())


def works(lab: RunningLab) -> bool:
    return lab.exec("client", ("cat",), input=b"still here").stdout == "still here"


def asks(**fields: object) -> bytes:
    return json.dumps({"version": __version__, **fields}).encode()


EXEC = {"node": "client", "argv": ["ZWNobw=="], "env": [], "folders": ["Lw=="]}
HALF = {
    "nothing": b"",
    "half a length": b"\1",
    "half a message": frame(asks(verb="status"))[:-1],
    "a message that never comes": (messages.LONGEST).to_bytes(4, "little") + b"x" * 1000,
}
NONSENSE = {
    "no json": frame(b"no json at all"),
    "no request": frame(b"null"),
    "no such verb": frame(asks(verb="no such verb")),
    "no version": frame(b'{"verb": "status"}'),
    "a verb that is a list": frame(asks(verb=["status"])),
    "bytes that are no text": frame(b"\xff" * 50),
    "brackets without end": frame(asks(verb="status")[:-1] + b', "more": ' + b"[" * 100_000),
    "an absurd length": b"\xff" * 64,
    "too many descriptors": b"",
    "a command without words": frame(asks(verb="exec", **{**EXEC, "argv": []})),
    "a command without a program": frame(asks(verb="exec", **{**EXEC, "argv": [""]})),
    "NUL in an argument": frame(asks(verb="exec", **{**EXEC, "argv": ["ZWNobw==", "AA=="]})),
    "a variable without a name": frame(asks(verb="exec", **{**EXEC, "env": ["PXg="]})),
    "a command without a folder": frame(asks(verb="exec", **{**EXEC, "folders": []})),
    "a node that is a number": frame(asks(verb="exec", **{**EXEC, "node": 5})),
    "a text for a command": frame(asks(verb="exec", **{**EXEC, "argv": "ls"})),
    "half of the arguments": frame(asks(verb="exec", node="client")),
    "rubbish to change to": frame(asks(verb="change", perform=5, whole=5, about={}, hosts="")),
    "rubbish to run": frame(asks(verb="run", steps=["rubbish"], folder="/nonexistent", seconds=1)),
    "a run without end": frame(asks(verb="run", steps=[], folder="/nonexistent", seconds=1e300)),
    "a run of NaN seconds": frame(asks(verb="run", steps=[], folder="/nonexistent", seconds=float("nan"))),
}


@pytest.mark.parametrize("sent", HALF.values(), ids=HALF)
def test_a_client_that_stops_in_the_middle_stops_nobody(lab: RunningLab, sent: bytes) -> None:
    with control.connect(lab.name) as silent:
        silent.sendall(sent)
        assert works(lab)
    assert works(lab)


def test_what_is_not_understood_is_answered_with_an_error_and_costs_its_connection(lab: RunningLab) -> None:
    for what, sent in NONSENSE.items():
        with control.connect(lab.name, 5) as odd:
            null = os.open("/dev/null", os.O_RDONLY)
            socket.send_fds(odd, [sent or b"\0"], [null] * (100 if not sent else 2))
            os.close(null)
            with pytest.raises(LabError, match=r"not valid|understand|too long|descriptors"):
                control.answer(lab.name, odd)
            with suppress(ConnectionResetError):  # some of it was not read
                assert odd.recv(1) == b"", f"{what}: it hangs up"
        assert works(lab), what


ODD_STEPS = [
    Configure("client", VethAdd("x" * 300, "no mac", "server", "y", "02:00:00:00:00:01")),
    Configure("client", AddressAdd("no address", "eth0")),
    Configure("client", RouteAdd("10.0.0.0/8", "eth0", table=1 << 40)),
    Configure("nobody", LinkSet("eth0", up=True)),
    Configure("client", SysctlSet("net.\0", "1")),
    Configure("client", Qdisc("eth0", "tbf", 1 << 70 >> 8, 1, Tbf(-5, 0, 1 << 50))),
    Write("a\0b", "text"),
    Run("client", ()),
    Run("client", ("a\0",)),
    Spawn("client", "x", ()),
    Spawn("client", "x", ("no such module",), forked=True, at=1e-9, within=1e308),
    Wait("client", Listening(-5), within=0.0),
    Wait("client", LinksUp(("x" * 100,)), within=0.0),
]


@pytest.mark.parametrize("step", ODD_STEPS, ids=lambda s: type(getattr(s, "request", s)).__name__)
def test_steps_that_no_plan_has_fail_and_the_lab_lives(lab: RunningLab, step: Step, tmp_path: Path) -> None:
    with pytest.raises((LabError, BugError)) if getattr(step, "at", None) is None else nullcontext():
        lab.ask(asking.Change(travel.encode([step]), travel.encode([]), {}, ""), patience=10)
    with suppress(LabError, BugError):
        lab.ask(asking.Run(travel.encode([step]), str(tmp_path), 0.0), patience=20)
    assert works(lab)


def test_what_nobody_foresaw_in_a_holder_ends_the_command_line_with_70_and_its_traceback(lab: RunningLab) -> None:
    code = """
import sys
from testbed.lab import asking, control, travel
from testbed.cli import process
from testbed.drivers.link import AddressAdd
from testbed.steps import Configure
odd = travel.encode([Configure("client", AddressAdd("1.2.3.4/x", "eth0"))])
process.perform(lambda: control.find(sys.argv[1]).ask(asking.Change(odd, travel.encode([]), {}, "")))
"""
    words = (sys.executable, "-c", code, lab.name)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 70
    rows = done.stderr.splitlines()
    assert rows[0].startswith("testbed: a bug in testbed: ValueError: invalid literal for int()")
    assert any("/testbed/drivers/link.py" in row for row in rows), "what the holder was at"
    assert rows[-1].startswith("testbed: please report it with all of the above: testbed ")
    assert works(lab)


def test_descriptors_that_nobody_asked_for_are_closed(lab: RunningLab) -> None:
    before = len(os.listdir(f"/proc/{lab.holder}/fd"))
    null = os.open("/dev/null", os.O_RDONLY)
    for _ in range(20):
        lab.ask(asked.Status(), fds=[null] * 8)
    os.close(null)
    eventually(lambda: len(os.listdir(f"/proc/{lab.holder}/fd")) <= before)


def test_three_hundred_half_messages_are_held_open_and_the_owner_is_answered(lab: RunningLab) -> None:
    folder = f"/proc/{lab.holder}/fd"
    assert works(lab)
    before = len(os.listdir(folder))
    held = [control.connect(lab.name) for _ in range(300)]
    for one in held:
        one.sendall(messages.LONGEST.to_bytes(4, "little") + b"x" * 1000)
    assert works(lab)
    for one in held:
        one.close()
    eventually(lambda: len(os.listdir(folder)) <= before)


def test_more_connections_than_there_is_room_for_cost_those_that_say_nothing(lab: RunningLab) -> None:
    held = [control.connect(lab.name) for _ in range(listening.MOST + 50)]
    assert works(lab)
    assert held[0].recv(1) == b"", "the first had to go"
    for one in held:
        one.close()
    assert works(lab)


def test_a_holder_without_descriptors_sleeps_and_serves_again(name: str) -> None:
    making = (
        "import resource, sys, testbed\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "testbed.up(testbed.load(sys.argv[1]), sys.argv[2]).keep()"
    )
    subprocess.run((sys.executable, "-c", making, str(TWO), name), check=True)
    lab = control.find(name)
    held = [control.connect(name) for _ in range(60)]
    assert lab.status()["state"] == "up", "a new one takes the place of one that says nothing"
    heard = [one for one in held if not select.select([one], [], [], 0)[0]]
    for one in heard:  # until all that it has wait for the end of something
        with suppress(OSError):
            messages.send(one, asked.encode(asking.command("client", ["sleep", "3"], {}, ["/"])), [0, 1, 2])
    before, began = spent(lab.holder), time.monotonic()
    waiting = [control.connect(name) for _ in range(20)]
    while time.monotonic() - began < 2:
        select.select([], [], [], 0.1)
    assert spent(lab.holder) - before < 0.5, "s of a processor in 2 s: it must not ask for the same again and again"
    for one in (*held, *waiting):
        one.close()
    assert works(lab)


def spent(pid: int) -> float:
    """Return the seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_another_user_can_not_say_a_word_to_a_holder(lab: RunningLab, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    marker = tmp_path / "marker"
    down = frame(asks(verb="down"))
    address = reach.address(lab.name)
    assert as_other(lambda: refused(address, [evil(marker), down, down[:3], b"", b"\xff" * 100])) == 0
    assert not marker.exists()
    assert works(lab)


def test_a_flood_of_another_user_keeps_nobody_out(lab: RunningLab) -> None:
    def flood() -> None:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
                connection.connect(reach.address(lab.name))
                connection.send(frame(asks(verb="down"))[:20])

    if (child := os.fork()) == 0:
        os._exit(as_other(flood))
    for _ in range(20):
        assert works(lab)
    assert os.waitpid(child, 0)[1] == 0
    assert works(lab)


def test_a_client_that_reads_no_answers_stops_nobody(lab: RunningLab) -> None:
    with control.connect(lab.name) as deaf:
        deaf.setblocking(False)
        with pytest.raises(BlockingIOError):
            deaf.sendall(frame(asks(verb="look", node="client")) * 100_000)
        assert works(lab)
        rss = Path(f"/proc/{lab.holder}/statm").read_text().split()[1]
        assert int(rss) * os.sysconf("SC_PAGESIZE") < 300_000_000, "answers do not pile up"
    assert works(lab)


def test_sixty_clients_at_once_are_all_answered(lab: RunningLab) -> None:
    clients = [control.connect(lab.name) for _ in range(60)]
    for client in clients:
        messages.send(client, asked.encode(asked.Status()))
    for client in clients:
        assert control.answer(lab.name, client, asked.Status())["name"] == lab.name
        client.close()


def test_a_lab_of_another_version_says_so_and_can_be_taken_down(lab: RunningLab) -> None:
    with control.connect(lab.name) as newer:
        messages.send(newer, json.dumps({"version": "99.0", "verb": "change", "one": "more"}).encode())
        with pytest.raises(
            LabError,
            match=rf"of testbed 99.0 .* made by testbed {re.escape(sources.version())}; .*testbed down {lab.name}",
        ):
            control.answer(lab.name, newer)
    with control.connect(lab.name) as newer:
        messages.send(newer, json.dumps({"version": "99.0", "verb": "down"}).encode())
        control.answer(lab.name, newer)


def test_a_request_that_a_lab_does_not_know_is_answered_with_both_versions(lab: RunningLab) -> None:
    class Tomorrow(asked.Asked, frozen=True):
        """A verb of a later commit, which has the same version number."""

    with pytest.raises(LabError, match=rf"made by testbed {VERSION}; .* \(this is testbed {VERSION}\)"):
        lab.ask(Tomorrow())
    assert works(lab)


def test_a_command_ends_with_the_program_that_asked_for_it(lab: RunningLab) -> None:
    asking = (
        "import sys; from testbed.lab import control\n"
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
    while name in reach.names():
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
