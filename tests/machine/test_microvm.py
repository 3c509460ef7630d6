"""Guests for real: QEMU boots, restores, runs commands, dies; and leaves nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

import pytest

from testbed.errors import LabError
from testbed.lab import reach
from testbed.linux import kernel_log
from testbed.machines.guest import booted, command, console, keeper, kvm, microvm, qemu, shared, starting
from testbed.machines.guest.microvm import Guest
from testbed.machines.guest.qemu import Boot, Share, Size
from tests.conftest import ROOT
from tests.kernel.others import as_other, evil, frame, refused

pytestmark = [pytest.mark.machine, pytest.mark.xdist_group("microvm")]
USUAL = Size()  # that of labs: all tests share one saved guest


@dataclass(frozen=True)
class Folder:
    """An image that is named by its folder."""

    folder: Path
    digest: str


@pytest.fixture(scope="module")
def image() -> booted.Image:
    """The image of the present recipe, or the one in the folder TESTBED_IMAGE."""
    if named := os.environ.get("TESTBED_IMAGE"):
        return Folder(Path(named), str(os.stat(f"{named}/root.squashfs").st_mtime_ns))
    images = pytest.importorskip("testbed.machines.guest.image")
    found: booted.Image | None = images.find()
    if found is None:
        pytest.skip("there is no image: `testbed image build` makes one")
    return found


@pytest.fixture(scope="module")
def boot(image: booted.Image) -> Boot:
    return booted.booted(image, "tcg")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@contextmanager
def beginning(image: booted.Image, results: Path) -> Iterator[Callable[..., Guest]]:
    """Yield a function that starts a guest; all of them are stopped."""
    started: list[Guest] = []

    def start(more: Mapping[str, Share] = MappingProxyType({}), **options: object) -> Guest:
        shares = {"code": Share(ROOT, "/testbed"), "results": Share(results, "/srv/results", True), **more}
        options = {"accel": "tcg", **options}
        started.append(microvm.start(image, USUAL, f"t{uuid4().hex[:8]}", shares, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for guest in started:
        if not guest.life.closed:
            microvm.stop(guest)


@pytest.fixture
def begin(image: booted.Image, results: Path) -> Iterator[Callable[..., Guest]]:
    """A function that starts a guest of a test's own, which ends with the test: an idle one takes time from others."""
    with beginning(image, results) as start:
        yield start


@pytest.fixture(scope="module")
def guest(image: booted.Image, results: Path) -> Iterator[Guest]:
    with beginning(image, results) as start:
        yield start()


def output(guest: Guest, *argv: str, **options: object) -> tuple[int, str]:
    """Run a command in a guest; its exit status and what it wrote."""
    read, write = os.pipe()
    with open(read) as said, open(os.devnull) as null:
        status = command.call(guest, argv, streams=(null.fileno(), write, write), **options)  # type: ignore[arg-type]
        os.close(write)
        return status, said.read()


def eventually(fact: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def runs(guest: Guest, words: str) -> bool:
    """Whether a process with these words runs in the guest."""
    return output(guest, "pgrep", "-f", f"^{words}")[0] == 0


def test_a_restored_guest_is_a_machine_of_its_own_and_runs_the_command_line(guest: Guest) -> None:
    assert guest.restored
    status, said = output(guest, "sh", "-c", "hostname; date +%s; cat /proc/sys/kernel/random/uuid /etc/machine-id")
    name, seconds, drawn, machine = said.split()
    assert (status, name) == (0, guest.name)
    assert abs(time.time() - int(seconds)) < 5, "its clock is this machine's"
    assert len({drawn, machine}) == 2
    status, said = output(guest, "testbed", "check", "/testbed/topologies/two-hosts.yaml", "--json")
    assert (status, json.loads(said)["name"]) == (0, "two-hosts")


def test_a_lab_comes_up_in_a_guest(guest: Guest) -> None:
    assert output(guest, "testbed", "up", "/testbed/topologies/two-hosts.yaml")[0] == 0
    status, said = output(guest, "testbed", "exec", "two-hosts", "client", "--", "ping", "-c", "1", "10.0.1.2")
    assert (status, "1 received" in said) == (0, True), said
    assert output(guest, "testbed", "down", "two-hosts")[0] == 0


def test_exit_statuses_are_the_commands_own(guest: Guest) -> None:
    assert [output(guest, "sh", "-c", f"exit {n}")[0] for n in (0, 7, 255)] == [0, 7, 255]
    assert output(guest, "sh", "-c", "kill -TERM $$")[0] == 128 + signal.SIGTERM
    assert output(guest, "no-such-program")[0] == 127
    assert output(guest, "testbed", "status", "no-such-lab")[0] == 3


def test_words_and_streams_pass_unchanged(guest: Guest, tmp_path: Path) -> None:
    words = ("a b", "", "'", '"', "$HOME", "*", "ä\n", "--")
    assert output(guest, "printf", "<%s>", *words)[1] == "".join(f"<{w}>" for w in words)
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open() as given, (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        streams = (given.fileno(), out.fileno(), err.fileno())
        assert command.call(guest, ("sh", "-c", "cat; echo oops >&2"), streams=streams) == 0
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "err").read_text() == "oops\n"


def test_what_a_guest_writes_is_a_plain_file_of_qemus_here(guest: Guest, results: Path) -> None:
    script = (
        "cd /srv/results; mkdir a; echo hello >a/b; chmod 4755 a/b; ln -s b a/link; mknod a/disk b 1 1; stat -c %a a/b"
    )
    status, said = output(guest, "sh", "-c", script)
    assert (status, said) == (0, "4755\n"), "in the guest it has the mode that was given to it"
    for file in ("b", "link", "disk"):
        made = (results / "a" / file).lstat()
        assert stat.S_IMODE(made.st_mode) == 0o600
        assert stat.S_ISREG(made.st_mode)
        assert made.st_uid == results.stat().st_uid == int(_status(guest)["Uid"][0])
    assert (results / "a/b").read_text() == "hello\n"
    (results / "a/b").write_text("edited here\n")
    assert output(guest, "cat", "/srv/results/a/b")[1] == "edited here\n"
    assert output(guest, "touch", "/testbed/x")[0] != 0, "the sources are read-only"


def _status(guest: Guest) -> dict[str, list[str]]:
    rows = Path(f"/proc/{_qemu(guest)}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (row.partition(":") for row in rows)}


def test_qemu_is_a_process_without_privileges_that_can_only_read_what_it_was_started_from(guest: Guest) -> None:
    status = _status(guest)
    if os.geteuid() == 0:
        assert len(set(status["Uid"] + status["Gid"])) == 1
        assert status["Uid"][0] != "0"
        assert set(status["Groups"]) <= {str(kvm.DEVICE.stat().st_gid)} if kvm.DEVICE.exists() else not status["Groups"]
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind][0], 16) == 0, kind
    assert (status["NoNewPrivs"], status["Seccomp"]) == (["1"], ["2"])
    process = Path(f"/proc/{_qemu(guest)}")
    opened = {os.readlink(fd): process / "fdinfo" / fd.name for fd in (process / "fd").iterdir()}
    files = {path: info for path, info in opened.items() if "/images/" in path}
    assert {"ram", "root.squashfs"} <= {Path(path).name for path in files}
    for path, info in files.items():
        flags = int(info.read_text().split("flags:")[1].split()[0], 8)
        assert flags & os.O_ACCMODE == os.O_RDONLY, path


def test_a_guest_that_floods_its_console_takes_no_more_memory_and_is_used_as_before(
    begin: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its keeper keeps less than others do: an emulated port takes 13 us for each byte.
    head, tail = 8 << 10, 64 << 10
    monkeypatch.setattr(starting, "opened", partial(console.opened, head=head, tail=tail))
    guest = begin()
    flood = "yes $(printf %0100d 1) | head -c 300000 >/dev/console; echo the last words >/dev/console"
    assert output(guest, "sh", "-c", flood)[0] == 0
    eventually(lambda: b"the last words" in console.text(guest.console.fileno(), head, tail))
    file = os.fstat(guest.console.fileno())
    assert file.st_size > 300_000
    assert file.st_blocks * 512 < 200_000
    assert b"bytes of this console were dropped" in console.text(guest.console.fileno(), head, tail)
    assert output(guest, "true")[0] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_guest_that_fills_the_disk_is_ended(begin: Callable[..., Guest], tmp_path: Path) -> None:
    subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={(shared.RESERVE >> 20) + 8}m", "small", tmp_path), check=True)
    try:
        guest = begin({"results": Share(tmp_path, "/srv/results", True)})
        # In large parts: each costs an emulated processor as much as a page does.
        fill = ("sh", "-c", "dd if=/dev/zero of=/srv/results/file bs=1M count=16; sleep 1000")
        with pytest.raises(LabError, match="it fills the disk with its results"), open(os.devnull, "r+") as null:
            command.call(guest, fill, streams=(null.fileno(),) * 3)
        eventually(lambda: guest.name not in microvm.guests(), 5)
    finally:
        subprocess.run(("umount", tmp_path), check=True)


def test_edited_sources_are_what_runs(begin: Callable[..., Guest], tmp_path: Path) -> None:
    for other in ("msgspec", "typer", "yaml"):  # as beside an installed testbed: for the host's Python
        (tmp_path / f"{other}.py").write_text("raise ImportError('this is the host's')\n")
    subprocess.run(("cp", "-r", str(ROOT / "testbed"), str(tmp_path)), check=True)
    tmp_path.chmod(0o755)  # QEMU has a user of its own
    guest = begin({"code": Share(tmp_path, "/testbed")})
    assert output(guest, "testbed", "--version")[1].startswith("testbed 0")
    good = (tmp_path / "testbed/units.py").read_text()
    (tmp_path / "testbed/units.py").write_text("nonsense here\n")
    status, said = output(guest, "testbed", "check", "/testbed/x.yaml")
    assert (status, "SyntaxError" in said) == (70, True), said
    (tmp_path / "testbed/units.py").write_text(good)
    (tmp_path / "testbed/__init__.py").write_text(
        re.sub(r"__version__ = .*", '__version__ = "edited"', (ROOT / "testbed/__init__.py").read_text())
    )
    # In the end: the guest now imports all of them, in vain.
    assert output(guest, "testbed", "--version")[1] == "testbed edited\n"


CALL = """
import sys
from testbed.machines.guest import command, microvm
sys.exit(command.call(microvm.find(sys.argv[1]), sys.argv[2:]))
"""


def caller(guest: Guest, *argv: str, **options: object) -> subprocess.Popen[str]:
    words = (sys.executable, "-c", CALL, guest.name, *argv)
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_of_the_caller_are_the_commands(guest: Guest, number: signal.Signals) -> None:
    script = f"trap 'echo got; exit 5' {number.name[3:]}; echo ready; while :; do sleep 0.1; done"
    process = caller(guest, "sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.read() == "got\n"
    assert process.wait(10) == 5


def test_a_caller_that_is_killed_takes_its_command_along(guest: Guest) -> None:
    number = str(uuid4().int % 10**6 + 10**6)
    process = caller(guest, "sh", "-c", f"trap '' HUP; echo ready; exec sleep {number}")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert runs(guest, f"sleep {number}")
    process.kill()
    process.wait()
    eventually(lambda: not runs(guest, f"sleep {number}"))


@pytest.fixture(scope="module")
def other(image: booted.Image, results: Path) -> Iterator[Guest]:
    """A guest whose shared connection may be broken."""
    with beginning(image, results) as start:
        yield start()


@pytest.mark.parametrize("which", ["of the command", "that is shared"])
def test_an_ssh_that_is_killed_is_told_and_the_command_goes_with_it(other: Guest, which: str) -> None:
    guest = other
    number = str(uuid4().int % 10**6 + 10**6)
    process = caller(guest, "sh", "-c", f"trap '' HUP; echo ready; exec sleep {number}", stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if which == "of the command":
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    else:
        children = [str(p) for p in _inside(guest) if b"\0-N\0" in Path(f"/proc/{p}/cmdline").read_bytes()]
    (ssh,) = children
    os.kill(int(ssh), signal.SIGKILL)
    _, said = process.communicate(timeout=20)
    how = "ssh was killed by SIGKILL" if which == "of the command" else "its ssh ended"
    assert f"LabError: guest {guest.name}: the connection to it broke ({how})" in said
    eventually(lambda: not runs(guest, f"sleep {number}"))
    assert output(guest, "sh", "-c", "exit 255")[0] == 255, "and it can be used as before"


def test_many_commands_at_once_have_connections_of_their_own_when_the_shared_one_is_gone(other: Guest) -> None:
    for ssh in [p for p in _inside(other) if b"\0-N\0" in Path(f"/proc/{p}/cmdline").read_bytes()]:
        os.kill(ssh, signal.SIGKILL)  # the test before this one may have done so
    eventually(lambda: not microvm.alive(other).shared)
    # Dropbear, were it to listen itself, would refuse the sixth of one address that has yet to authenticate.
    processes = [caller(other, "sh", "-c", f"exit {n}") for n in range(6)]
    assert [process.wait(60) for process in processes] == list(range(6))


@pytest.mark.skipif(os.geteuid() != 0, reason="plays another user")
def test_another_user_can_not_say_a_word_to_the_keeper_of_a_guest(guest: Guest, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    marker = tmp_path / "marker"
    address = reach.address(guest.name, reach.GUESTS)
    stop = frame(b'{"verb": "stop"}')
    assert as_other(lambda: refused(address, [evil(marker), stop, stop[:5], b"\xff" * 100])) == 0
    assert not marker.exists(), "what it sent was run as root"
    assert output(guest, "sh", "-c", "exit 7")[0] == 7


def test_the_root_of_a_guest_may_write_what_it_likes_to_its_keeper(guest: Guest) -> None:
    script = (
        "import ctypes, os\n"
        "libc, life = ctypes.CDLL(None), os.pidfd_open(1)\n"
        "ports = [int(n) for n in os.listdir('/proc/1/fd') if 'vport' in os.readlink(f'/proc/1/fd/{n}')]\n"
        "port = libc.syscall(438, life, ports[0], 0)\n"  # pidfd_getfd(2)
        "for said in (b'\\nnot json\\n', b'[1]\\n{\"done\": 5}\\n\\xff\\n', b'x' * 3_000_000 + b'\\n'):\n"
        "    while said:\n"
        "        said = said[os.write(port, said):]\n"
    )
    status, said = output(guest, "python3", "-c", script)
    assert status == 0, said
    assert output(guest, "sh", "-c", "exit 7")[0] == 7
    assert microvm.alive(guest).name == guest.name


def test_a_command_ends_when_nobody_reads_its_output_any_more(guest: Guest) -> None:
    number = str(uuid4().int % 10**6 + 10**6)
    process = caller(guest, "yes", number)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{number}\n"
    process.stdout.close()
    assert process.wait(20) == 128 + signal.SIGPIPE
    eventually(lambda: not runs(guest, f"yes {number}"))
    process = caller(guest, "sh", "-c", "echo ready; read -r _; exit 3", stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait(20) == 3, "one that ends by itself has the status that it gave"


def test_a_terminal_is_the_commands_own(guest: Guest) -> None:
    ours, theirs = pty.openpty()
    script = "test -t 0 && tty && echo ready && trap 'echo stopped; exit 3' INT; while :; do sleep 0.1; done"
    words = (
        sys.executable,
        "-c",
        CALL.replace("sys.argv[2:])", "sys.argv[2:], tty=True)"),
        guest.name,
        "sh",
        "-c",
        script,
    )
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=ROOT)
    os.close(theirs)
    said = b""
    while b"ready" not in said:
        assert select.select([ours], [], [], 20)[0], said
        said += os.read(ours, 4096)
    assert b"/dev/pts/" in said
    os.write(ours, b"\x03")
    while b"stopped" not in said:
        assert select.select([ours], [], [], 20)[0], said
        said += os.read(ours, 4096)
    assert process.wait(10) == 3
    os.close(ours)


def test_two_guests_share_a_saved_one_and_nothing_else(guest: Guest, begin: Callable[..., Guest]) -> None:
    other = begin()
    assert guest.restored
    assert other.restored
    own = "cat /etc/machine-id /proc/sys/kernel/random/uuid; cd /run/testbed; sha256sum host_key authorized_keys"
    mine, theirs = (set(output(g, "sh", "-c", own)[1].splitlines()) for g in (guest, other))
    assert len(mine) == len(theirs) == 4
    assert not mine & theirs
    output(guest, "sh", "-c", "echo mine >/root/file")
    assert output(other, "cat", "/root/file")[0] != 0


def test_a_guest_reaches_nothing_of_its_host(guest: Guest) -> None:
    probe = "import socket; socket.create_connection(('10.0.2.2', {}), 2)"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, said = output(guest, "python3", "-c", probe.format(port))
    assert status == 1, said


TOGGLES = """
import os, socket, sys
def opened(option):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(*option)
    return s
def traffic():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("127.0.0.1", 0))
    s.connect(s.getsockname())
    while True:
        s.send(b"x" * 100), s.recv(200)
children = []
for _ in range(2):
    children.append(os.fork())
    if not children[-1]:
        traffic()
for _ in range(1000):
    for option in ((socket.SOL_SOCKET, 29, 1), (socket.IPPROTO_UDP, 100, 3)):  # SO_TIMESTAMP, UDP_ENCAP
        opened(option).close()
        os.sched_yield()
for child in children:
    os.kill(child, 9)
print("alive")
"""


def test_what_pings_and_tunnels_turn_on_and_off_in_the_kernel_does_not_end_an_emulated_guest(
    begin: Callable[..., Guest],
) -> None:
    assert output(begin(), "python3", "-c", TOGGLES) == (0, "alive\n")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda g: os.kill(_qemu(g), signal.SIGKILL), "killed by SIGKILL"),
        (lambda g: os.kill(g.holder, signal.SIGKILL), "was killed"),
        (lambda g: os.kill(_qemu(g), signal.SIGSTOP), "hangs"),
        (lambda g: subprocess.run((*g.ssh, "echo c >/proc/sysrq-trigger"), timeout=20, check=False), "panicked"),
    ],
    ids=["killed", "orphaned", "hangs", "panics"],
)
def test_the_end_of_a_guest_is_told_within_10_s_and_nothing_is_left(
    begin: Callable[..., Guest], harm: Callable[[Guest], object], says: str
) -> None:
    guest = begin()
    output(guest, "sh", "-c", "echo the last words >/dev/console")
    pids = _inside(guest)
    timer = threading.Timer(1.0, harm, (guest,))
    began = time.monotonic()
    timer.start()
    with pytest.raises(LabError, match=says) as caught, open(os.devnull, "r+") as null:
        command.call(guest, ("sleep", "1000"), streams=(null.fileno(),) * 3)
    assert time.monotonic() - began < 11
    assert "the last words" in str(caught.value)
    timer.join()
    with pytest.raises(LabError):
        microvm.alive(guest)
    eventually(lambda: not [p for p in pids if Path(f"/proc/{p}").exists()], 5)
    assert guest.name not in microvm.guests()
    if says == "panicked":
        assert [f for f in kernel_log.kernel_faults(str(caught.value)) if "sysrq triggered crash" in f]


def _inside(guest: Guest) -> list[int]:
    """Every process of a guest's sandbox, as seen from here."""
    space = os.readlink(f"/proc/{guest.holder}/ns/pid")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "ns/pid") == space:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _qemu(guest: Guest) -> int:
    return next(p for p in _inside(guest) if b"-nodefaults" in Path(f"/proc/{p}/cmdline").read_bytes())


def test_a_damaged_saved_guest_is_told_removed_and_not_used(
    image: booted.Image, boot: Boot, results: Path, tmp_path: Path
) -> None:
    for file in ("vmlinux", "vmlinuz", "initrd.gz", "root.squashfs"):
        if (image.folder / file).exists():
            (tmp_path / file).symlink_to(image.folder / file)
    folder = tmp_path / f"saved-{qemu.digest(boot, USUAL, image.digest, booted.qemu_version(), '')}"
    folder.mkdir()
    (folder / "state").write_bytes(b"nonsense")
    (folder / "code").write_text("")
    with (folder / "ram").open("wb") as ram:
        ram.truncate(USUAL.memory << 20)
    told: list[str] = []
    guest = microvm.start(Folder(tmp_path, image.digest), USUAL, f"t{uuid4().hex[:8]}", {}, True, told.append, "tcg")
    try:
        assert not guest.restored
        assert [t for t in told if "could not be restored" in t]
        assert not folder.exists()
        assert output(guest, "true")[0] == 0
    finally:
        microvm.stop(guest)


def test_kvm_is_judged_by_booting_with_it(boot: Boot, tmp_path: Path) -> None:
    works, why = kvm.works(boot, "this", tmp_path / "kvm.json")
    if not kvm.DEVICE.exists():
        assert (works, why) == (False, f"there is no {kvm.DEVICE}")
        return
    began = time.monotonic()
    assert kvm.works(boot, "this", tmp_path / "kvm.json") == (works, why)
    assert time.monotonic() - began < 0.5, "the answer is remembered"
    if not works:
        assert str(kvm.DEVICE) in why


def test_a_guest_is_emulated_with_the_reason_when_kvm_does_not_work(
    image: booted.Image, boot: Boot, begin: Callable[..., Guest]
) -> None:
    version = booted.qemu_version()
    works, why = kvm.works(boot, version, image.folder / "kvm.json")
    if works:
        pytest.skip("KVM works here")
    told: list[str] = []
    guest = begin(accel=None, told=told.append)
    assert (guest.accel, guest.why) == ("tcg", why)
    assert [t for t in told if why in t] == told[:1]


def test_this_process_is_the_only_owner(begin: Callable[..., Guest]) -> None:
    guest = begin()
    pids = _inside(guest)
    assert guest.owner is not None
    guest.owner.close()
    eventually(lambda: not [p for p in pids if Path(f"/proc/{p}").exists()], 5)


def test_a_kept_guest_is_found_by_its_name(begin: Callable[..., Guest]) -> None:
    guest = begin()
    microvm.keep(guest)
    found = microvm.find(guest.name)
    assert output(found, "hostname")[1].strip() == guest.name
    microvm.stop(found)
    assert guest.name not in microvm.guests()


assert keeper.PATIENCE < 10
