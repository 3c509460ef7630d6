"""Labs on a machine that ssh reaches: a real sshd in a network namespace of its own, and a guest as such a machine."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest

from testbed import __version__
from testbed.lab import sources
from testbed.linux import calls as linux
from testbed.machines.guest import booted
from tests.conftest import ROOT
from tests.kernel.remains import MARK, marked

pytestmark = [pytest.mark.kernel, pytest.mark.xdist_group("ssh")]

T = TypeVar("T")
PORT = 2222
TWO = str(ROOT / "topologies/two-hosts.yaml")
SHORT = """
name: short
nodes: {a: {}, b: {}}
links: [{ends: [a:eth0, b:eth0]}]
workloads: {rtt: {ping: {from: a, to: b, seconds: SECONDS}}}
checks: [{metric: rtt.loss_pct, max: MOST}]
"""


def begin(place: Place, *argv: str, **options: object) -> subprocess.Popen[bytes]:
    """Start a command line beside the sshd."""
    pipe = subprocess.PIPE
    options = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "cwd": place.work, **options}
    enter = os.open(f"/proc/{place.sshd.pid}/ns/net", os.O_RDONLY)
    try:
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            (sys.executable, "-m", "testbed", *argv),
            env={**place.env, **options.pop("env", {})},  # type: ignore[dict-item]
            preexec_fn=lambda: linux.setns(enter, linux.CLONE_NEWNET),
            **options,
        )
    finally:
        os.close(enter)


@dataclass(frozen=True)
class Done:
    """What a command line has left behind."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """A folder to work in, and a machine that 127.0.0.1 is."""

    folder: Path
    mark: str
    sshd: subprocess.Popen[bytes]
    env: dict[str, str]

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def temporary(self) -> Path:
        """The machine's folder for temporary files."""
        return self.folder / "there"

    def run(self, *argv: str, **options: object) -> Done:
        """Run a command line to its end."""
        said = options.pop("input", b"")
        process = begin(self, *argv, **options)
        out, err = process.communicate(said, timeout=90)  # type: ignore[arg-type]
        return Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def machine(self, name: str = "server", *more: str, url: str = f"ssh://root@127.0.0.1:{PORT}") -> Done:
        """Make the sshd known as a machine."""
        files = {"IdentityFile": "key", "UserKnownHostsFile": "known_hosts"}
        own = [f"{option}={self.folder / file}" for option, file in files.items()]
        own += ["IdentitiesOnly=yes", "IdentityAgent=none", "GlobalKnownHostsFile=none"]
        program = () if "--program" in more else ("--program", str(self.folder / "testbed"))
        options = [w for o in own for w in ("--ssh-option", o)]
        # What comes first holds: an option of a test's own goes before these.
        return self.run("machine", "add", name, url, *program, *more, *options)

    def sessions(self) -> list[int]:
        """The process ids of sshd's children, a connection each."""
        children = Path(f"/proc/{self.sshd.pid}/task/{self.sshd.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def left(self) -> list[str]:
        """What is there of command lines and labs in the end: processes, labs and files."""
        deadline = time.monotonic() + 45
        while time.monotonic() < deadline:
            found = [p.words for p in marked(self.mark) if p.pid != self.sshd.pid]
            found += [f"sshd, process {pid}" for pid in self.sessions()]
            found += [str(f) for f in self.temporary.iterdir()]
            found += [str(f) for f in self.work.glob("results/.*")]
            if not found:
                break
            time.sleep(0.05)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("sshd lets an ordinary user in a namespace of its own change to nobody")
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("there is no sshd: apt-get install openssh-server")
    mark = uuid4().hex
    for name in ("work", "there", "config"):
        (tmp_path / name).mkdir()
    wrapper = tmp_path / "testbed"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m testbed "$@"\n')
    wrapper.chmod(0o755)
    for key in ("key", "host_key"):
        subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key)), check=True)
    host = (tmp_path / "host_key.pub").read_text()
    (tmp_path / "known_hosts").write_text(f"[127.0.0.1]:{PORT} {host}")
    shutil.copy(tmp_path / "key.pub", tmp_path / "authorized_keys")
    cache = os.environ["XDG_CACHE_HOME"]
    (tmp_path / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{PORT}\nHostKey {tmp_path / 'host_key'}\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path / 'authorized_keys'}\nAuthenticationMethods publickey\nPrintMotd no\n"
        f'SetEnv {MARK}={mark} TMPDIR={tmp_path / "there"} XDG_CACHE_HOME={cache} "PATH={os.environ["PATH"]}"\n'
    )
    # Its own /run for sshd's folder there. When it ends, what it serves must end because the connection does.
    script = 'mount -t tmpfs tmpfs /run; mkdir /run/sshd; ip link set lo up; exec "$0" -D -e -f "$1"'
    words = ("unshare", "--net", "--mount", "sh", "-c", script, program, str(tmp_path / "sshd_config"))
    env = {**os.environ, MARK: mark, "XDG_CONFIG_HOME": str(tmp_path / "config"), "PYTHONPATH": str(ROOT)}
    env["PATH"] += ":/usr/sbin:/sbin"
    with (tmp_path / "sshd.log").open("wb") as log:
        sshd = subprocess.Popen(words, env=env, stderr=log)
    made = Place(tmp_path, mark, sshd, env)
    try:
        deadline = time.monotonic() + 20
        while f"Server listening on 127.0.0.1 port {PORT}." not in (tmp_path / "sshd.log").read_text():
            assert sshd.poll() is None, (tmp_path / "sshd.log").read_text()
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.02)
        yield made
    finally:
        for session in made.sessions():
            os.kill(session, signal.SIGKILL)
        sshd.kill()
        sshd.wait()
        for process in marked(mark):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def server(place: Place) -> Place:
    """A place whose machine is known as `server`."""
    done = place.machine()
    assert done.status == 0, done.err
    assert done.out == f"machine server: ssh://root@127.0.0.1:{PORT}, testbed {__version__}\n"
    return place


def topology(place: Place, seconds: int = 1, most: int = 0) -> str:
    file = place.work / "short.yaml"
    file.write_text(SHORT.replace("SECONDS", str(seconds)).replace("MOST", str(most)))
    return file.name


def awaited(place: Place, words: str, but: str = "\0") -> int:
    """The process id of a process with these words, and without those, as soon as there is one."""
    return until(
        lambda: next((p.pid for p in marked(place.mark) if words in p.words and but not in p.words), None), words
    )


def until(look: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within 30 s: {what}")


def test_a_machine_is_added_listed_and_forgotten(server: Place) -> None:
    assert f"server   ssh://root@127.0.0.1:{PORT}" in server.run("machine", "ls").out
    row = {"name": "server", "url": f"ssh://root@127.0.0.1:{PORT}", "program": str(server.folder / "testbed")}
    assert json.loads(server.run("machine", "ls", "--json").out) == [row]
    assert server.machine().status == 0, "the same again is no change"
    other = server.machine("server", "--ssh-option", "Compression=yes")
    assert (other.status, "another one has this name" in other.err) == (2, True)
    assert server.run("machine", "rm", "server").out == "machine server is forgotten\n"
    assert server.run("machine", "rm", "server").status == 2
    assert json.loads(server.run("machine", "ls", "--json").out) == []


def test_machines_that_are_added_at_once_are_all_known(place: Place) -> None:
    words: tuple[str, ...] = (
        "--program",
        str(place.folder / "testbed"),
        "--ssh-option",
        f"IdentityFile={place.folder / 'key'}",
    )
    words += ("--ssh-option", f"UserKnownHostsFile={place.folder / 'known_hosts'}")
    url = f"ssh://root@127.0.0.1:{PORT}"
    begun = [begin(place, "machine", "add", f"m{n}", url, *words) for n in range(4)]
    for process in begun:
        assert process.communicate(timeout=60)[1] == b""
    assert {m["name"] for m in json.loads(place.run("machine", "ls", "--json").out)} == {f"m{n}" for n in range(4)}


def test_a_lab_outlives_the_connection_that_made_it_and_is_used_as_one_that_is_here(server: Place) -> None:
    up = server.run("up", TWO, "--machine", "server")
    assert up.status == 0, up.err
    assert up.out.startswith("lab two-hosts up in ")
    assert up.out.endswith("testbed down two-hosts@server\n"), up.out
    assert "10.0.1.1/30" in server.run("exec", "two-hosts@server", "client", "--", "ip", "addr").out
    assert server.run("status", "two-hosts@server").out.startswith("lab two-hosts: up for ")
    (listed,) = json.loads(server.run("status", "@server", "--json").out)
    assert (listed["name"], listed["machine"]) == ("two-hosts", "server")
    assert server.run("up", TWO, "--machine", "server").out.startswith("lab two-hosts unchanged in ")
    changed = server.run("up", TWO, "--machine", "server", "--set", "links.cable.rate=20mbit")
    assert "lab two-hosts changed in " in changed.out, changed.err
    down = server.run("down", "two-hosts@server")
    assert (down.status, down.out) == (0, "lab two-hosts@server is down\n")
    gone = server.run("exec", "two-hosts@server", "client", "--", "true")
    assert (gone.status, "no such lab is up" in gone.err) == (125, True)
    assert server.left() == []


def test_a_command_there_has_its_streams_and_its_exit_status(server: Place) -> None:
    assert server.run("up", topology(server), "--machine", "server").status == 0
    for status in (0, 7, 130, 255):
        done = server.run("exec", "short@server", "a", "--", "sh", "-c", f"exit {status}")
        assert (done.status, done.out, done.err) == (status, "", "")
    data = os.urandom(1 << 20)
    process = begin(server, "exec", "short@server", "a", "--", "sh", "-c", "tee /dev/stderr")
    assert process.communicate(data, timeout=60) == (data, data)
    words = ("a b", "*", "$HOME", "'", '"', "\\", "", "--", "\n", "é")
    done = server.run("exec", "short@server", "a", "--", "printf", "<%s>", *words)
    assert done.out == "".join(f"<{w}>" for w in words)
    assert server.run("down", "short@server").status == 0
    assert server.left() == []


def test_a_shell_there_has_a_terminal(server: Place) -> None:
    assert server.run("up", topology(server), "--machine", "server").status == 0
    ours, theirs = pty.openpty()
    process = begin(
        server, "shell", "short@server", "a", stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={"TERM": "vt100"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def reads(wanted: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while wanted not in seen:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], seen
            seen += os.read(ours, 4096)

    reads(b"a@short:")
    os.write(ours, b"test -t 0 && tty && echo $TERM-$((6*7))\n")
    reads(b"/dev/pts/")
    reads(b"vt100-42")
    os.write(ours, b"cat\n")
    reads(b"cat\r\n")
    until(lambda: [p for p in marked(server.mark) if p.words == "cat"] or None, "cat runs")
    os.write(ours, b"purr\n")
    reads(b"purr\r\npurr")  # by now the prompt before `cat` has been read, too
    seen = b""
    os.write(ours, b"\x03")  # Ctrl-C ends cat and not the shell
    reads(b"a@short:")
    os.write(ours, b"echo still-$((3*3)); exit 5\n")
    reads(b"still-9")
    with suppress(OSError):  # EIO: the other end is closed
        while os.read(ours, 4096):
            pass
    assert process.wait(30) == 5
    os.close(ours)
    assert server.run("down", "short@server").status == 0
    assert server.left() == []


def test_results_are_where_they_would_be_had_it_run_here(server: Place) -> None:
    done = server.run("run", topology(server), "--machine", "server")
    assert done.status == 0, done.err
    folder = server.work / "results/short/latest"
    assert folder.is_symlink()
    assert f"results/short/{folder.readlink()}" in done.out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["machine"] == "server"
    assert manifest["arguments"] == ["run", "short.yaml", "--machine", "server"]
    assert (folder / "topology.yaml").read_text() == (server.work / "short.yaml").read_text()
    again = server.run("report", "results/short/latest")
    assert (again.status, "short: passed" in again.out) == (0, True)
    assert [f.name for f in (server.work / "results/short").iterdir() if f.name.startswith(".")] == []
    assert server.left() == []


def test_two_runs_at_the_same_second_keep_their_results_apart(server: Place) -> None:
    file = topology(server)
    begun = [begin(server, "run", file, "--machine", "server", "--name", f"r{n}") for n in range(2)]
    for process in begun:
        assert process.wait(60) == 0
    runs = [f for f in (server.work / "results/short").iterdir() if f.is_dir() and not f.is_symlink()]
    assert len(runs) == 2
    assert all((run / "verdict.json").exists() for run in runs)


def test_a_file_is_found_with_the_topology_that_it_is_an_experiment_on(server: Place) -> None:
    (server.work / "sub").mkdir()
    topology(server)
    (server.work / "sub/short").write_text("topology: ../short.yaml\nrepeat: 2\n")
    done = server.run("run", "short", "--name", "short", "--machine", "server", cwd=server.work / "sub")
    assert done.status == 0, done.err
    assert len(list((server.work / "sub/results/short/latest").glob("runs/short/[12]/verdict.json"))) == 2


def test_the_exit_status_is_that_of_a_run_here(server: Place) -> None:
    failed = server.run("run", topology(server, most=-1), "--machine", "server")
    assert (failed.status, "1 of 1 checks failed" in failed.err) == (1, True)
    assert json.loads((server.work / "results/short/latest/verdict.json").read_text())["verdict"] == "failed"
    wrong = server.work / "wrong.yaml"
    wrong.write_text("name: wrong\nnodes: {a: {roter: {}}}\n")
    assert server.run("run", "wrong.yaml", "--machine", "server").status == 2
    lacking = server.work / "lacking.yaml"
    lacking.write_text(
        "name: lacking\nnodes: {a: {mptcp: {scheduler: nosuch}}, b: {}}\nlinks: [{ends: [a:e0, b:e0]}]\n"
    )
    done = server.run("up", "lacking.yaml", "--machine", "server")
    assert (done.status, "mptcp-scheduler-nosuch" in done.err) == (4, True), done.err
    doctor = server.run("doctor", "lacking.yaml", "--machine", "server")
    assert (doctor.status, "mptcp-scheduler-nosuch" in doctor.out) == (4, True), doctor.err
    assert server.left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_its_results_and_nothing_else(server: Place, number: int) -> None:
    process = begin(server, "run", topology(server, seconds=60), "--machine", "server")
    awaited(server, "ping -n")
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number, said
    (run,) = (f for f in (server.work / "results/short").iterdir() if f.is_dir())
    assert (run / "manifest.json").exists()
    assert (run / "a/rtt.ping.txt").exists()
    assert server.left() == []


def test_a_command_line_that_is_killed_leaves_nothing_there(server: Place) -> None:
    process = begin(server, "run", topology(server, seconds=60), "--machine", "server")
    awaited(server, "ping -n")
    process.kill()
    process.wait()
    assert server.left() == []
    assert server.run("up", topology(server), "--machine", "server").status == 0
    stubborn = ("python3", "-c", "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()")
    for words in (("sleep", "987"), stubborn):
        process = begin(server, "exec", "short@server", "a", "--", *words)
        command = awaited(server, " ".join(words), but="testbed")
        if words == stubborn:
            assert process.stdout is not None
            process.stdout.readline()
        process.kill()
        process.wait()
        ended = partial(lambda folder: None if folder.exists() else True, Path(f"/proc/{command}"))
        until(ended, "the command ends")
    assert server.run("down", "short@server").status == 0
    assert server.left() == []


def test_a_connection_that_breaks_is_said_and_what_there_is_of_results_comes_all_the_same(server: Place) -> None:
    process = begin(server, "run", topology(server, seconds=60), "--machine", "server")
    awaited(server, "ping -n")
    (session,) = server.sessions()
    began = time.monotonic()
    os.kill(session, signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 3
    assert time.monotonic() - began < 15
    assert b"testbed: machine server: the connection broke: " in said
    (run,) = (f for f in (server.work / "results/short").iterdir() if f.is_dir())
    assert (run / "manifest.json").exists()
    assert server.left() == []


def test_a_machine_that_is_gone_is_said(server: Place) -> None:
    process = begin(server, "run", topology(server, seconds=60), "--machine", "server")
    awaited(server, "ping -n")
    began = time.monotonic()
    for part in (server.sshd.pid, *server.sessions()):
        os.kill(part, signal.SIGKILL)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 3
    assert time.monotonic() - began < 15
    assert b"testbed: machine server: the connection broke: " in said
    assert b"Connection refused" in said
    assert server.left() == []


def test_a_network_that_swallows_packets_is_noticed(server: Place) -> None:
    process = begin(server, "run", topology(server, seconds=60), "--machine", "server")
    awaited(server, "ping -n")

    def loopback(state: str) -> None:
        enter = ("nsenter", f"--net=/proc/{server.sshd.pid}/ns/net")
        subprocess.run((*enter, "ip", "link", "set", "lo", state), check=True)

    began = time.monotonic()
    loopback("down")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert time.monotonic() - began < 30
    assert b"the connection broke: Timeout, server 127.0.0.1 not responding." in said
    assert not (server.work / "results/short").exists()
    loopback("up")
    assert server.left() == [], "what is there hears of it then"


def test_what_can_not_be_reached_says_why(place: Place) -> None:
    nothing = place.run("exec", "lab@nowhere", "a", "--", "true")
    assert (nothing.status, "there is no machine 'nowhere'" in nothing.err) == (125, True)
    assert place.run("up", TWO, "--machine", "nowhere").status == 2
    closed = place.machine("closed", url="ssh://root@127.0.0.1:9")
    why = "can't be reached: ssh: connect to host 127.0.0.1 port 9: Connection refused"
    assert (closed.status, why in closed.err) == (3, True), closed.err
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place.folder / "other")), check=True)
    refused = place.machine("refused", "--ssh-option", f"IdentityFile={place.folder / 'other'}")
    assert refused.status == 0, "the first key is refused and the second one taken"
    (place.folder / "authorized_keys").write_text("")
    refused = place.machine("refused2")
    assert (refused.status, "Permission denied (publickey)" in refused.err) == (3, True), refused.err
    for bad in ("ssh://-oProxyCommand=x", "root@host", "ssh://host:port", "ssh://root:secret@host", "http://host"):
        assert place.machine("bad", url=bad).status == 2
    assert place.machine("microvm").status == 2
    assert len(json.loads(place.run("machine", "ls", "--json").out)) == 1


def test_another_version_there_is_refused(server: Place) -> None:
    missing = server.machine("missing", "--program", "/no/such/testbed")
    assert (missing.status, "/no/such/testbed can't be run there" in missing.err) == (4, True), missing.err
    other = server.folder / "other"
    other.write_text("#!/bin/sh\necho testbed 9.9.9\n")
    other.chmod(0o755)
    differs = server.machine("differs", "--program", str(other))
    assert (differs.status, "it has testbed 9.9.9" in differs.err) == (4, True), differs.err
    # It was replaced after it had been added.
    (server.folder / "testbed").write_text(
        f"#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "
        """'import testbed; testbed.__version__ = "9.9.9"; from testbed.cli import app as cli; cli.main()' "$@"\n"""
    )
    done = server.run("up", TWO, "--machine", "server")
    assert (done.status, f"you run testbed {sources.version()}, this machine has 9.9.9+" in done.err) == (4, True), (
        done.err
    )
    (server.folder / "testbed").unlink()
    done = server.run("up", TWO, "--machine", "server")
    assert (done.status, "can't be run there" in done.err) == (4, True), done.err
    assert server.left() == []


@pytest.mark.machine
@pytest.mark.xdist_group("microvm")
def test_a_guest_is_a_machine_that_ssh_reaches(tmp_path: Path) -> None:
    from testbed.machines.guest import image, microvm
    from testbed.machines.guest.qemu import Share, Size

    made = Image(Path(named)) if (named := os.environ.get("TESTBED_IMAGE")) else image.find()
    if made is None:
        pytest.skip("there is no image: `testbed image build` makes one")
    program = tmp_path / "program/testbed"
    program.parent.mkdir()
    code = Share(ROOT, "/testbed")
    call = f'/usr/sbin/testbed-call "$$" {booted.sources(code)} "$PWD" PYTHONPATH=/testbed'
    program.write_text(f'#!/bin/sh\nexec {call} -- testbed "$@"\n')  # by its command line that is warm
    program.chmod(0o755)
    shares = {"code": code, "results": Share(program.parent, "/srv/program", True)}
    guest = microvm.start(made, Size(), f"t{uuid4().hex[:8]}", shares)
    try:
        words = dict(zip(guest.ssh[1:-1:2], guest.ssh[2::2], strict=False))
        options = [w for w in guest.ssh if "=" in w and not w.startswith("ControlPath=")]
        options.append(f"IdentityFile={words['-i']}")
        env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

        def run(*argv: str) -> Done:
            line = (sys.executable, "-m", "testbed", *argv)
            done = subprocess.run(line, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120, check=False)
            return Done(done.returncode, done.stdout, done.stderr)

        url = f"ssh://root@127.0.0.1:{words['-p']}"
        added = run("machine", "add", "guest", url, "--program", "/srv/program/testbed", *(
            w for o in options for w in ("--ssh-option", o)
        ))  # fmt: skip
        assert added.status == 0, added.err
        up = run("up", str(ROOT / "topologies/netem-demo.yaml"), "--machine", "guest", "--name", "far")
        assert up.status == 0, up.err
        done = run("exec", "far@guest", "client", "--", "sh", "-c", "uname -r; exit 255")
        kernel = done.out.strip()
        assert (done.status, kernel != os.uname().release) == (255, True)
        assert run("down", "far@guest").out == "lab far@guest is down\n"
        (tmp_path / "short.yaml").write_text(SHORT.replace("SECONDS", "1").replace("MOST", "0"))
        done = run("run", "short.yaml", "--machine", "guest")
        assert done.status == 0, done.err
        manifest = json.loads((tmp_path / "results/short/latest/manifest.json").read_text())
        assert (manifest["machine"], manifest["kernel"]["release"]) == ("guest", kernel)
    finally:
        microvm.stop(guest)


@dataclass(frozen=True)
class Image:
    """An image that is named by its folder."""

    folder: Path

    @property
    def digest(self) -> str:
        return str((self.folder / "root.squashfs").stat().st_mtime_ns)
