"""Guests: QEMU running the image's kernel, restored from a saved boot when that fits, reached over SSH.

A guest is a sandbox of its own with a keeper as PID 1; its name is an abstract socket, as a lab's.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from msgspec import Raw, Struct, field
from msgspec.structs import replace

from testbed.errors import LabError, Unsupported
from testbed.lab import ending, furniture, reach, sandbox
from testbed.lab.reach import GUESTS, SilentError
from testbed.linux import calls as linux
from testbed.machines import trusted
from testbed.machines.guest import asking, confined, console, keeper, kvm, lent, qemu, saved
from testbed.machines.guest.asking import About, BrokenStateError, Call, Ended, Keep, PanicError, Signal, Status, Stop
from testbed.machines.guest.keeper import Order, Saved
from testbed.machines.guest.qemu import Boot, Share, Size

# QEMU forwards a port of this host's loopback, so the guest keeps this network namespace.
_SPACES = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWUTS
_TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}


class Image(Protocol):
    """What is booted (machines/image.py)."""

    @property
    def folder(self) -> Path:
        """Where its files are."""

    @property
    def digest(self) -> str:
        """The name of its content."""


class Guest(Struct, frozen=True):
    """A guest that can be used."""

    name: str
    ssh: tuple[str, ...]  # words before a command
    size: Size
    accel: str  # kvm or tcg
    why: str  # that one
    restored: bool
    phases: Mapping[str, float]  # the seconds that each part of its start took
    shares: Mapping[str, Share]
    holder: int  # the keeper's process id
    life: FileIO  # its pidfd
    console: FileIO  # readable even when the guest is gone
    owner: socket.socket | None = None  # it lives with this connection until it is kept


_LAST_WORDS = 1.0  # s that a command has to end by itself when nobody reads what it writes
Told = Callable[[str], None]
Hears = tuple[int, Callable[[bytes], None]]
T = TypeVar("T")


def start(
    image: Image,
    size: Size,
    name: str,
    shares: Mapping[str, Share],
    restore: bool = True,
    told: Told = lambda _: None,
    accel: str | None = None,
) -> Guest:
    """Start a guest, restored from a saved one that is made when there is none; it ends with this process until kept.

    `restore=False` boots it. `told` gets a sentence whenever something takes long or is not as wished.
    """
    _check(shares)
    version = qemu_version()
    boot, why = booted(image, accel or "tcg"), "asked for"
    files = _files(image, boot)
    try:
        if accel is None:
            works, why = kvm.works(boot, version, image.folder / "kvm.json")
            boot = replace(boot, accel="kvm" if works else "tcg")
            if not works:
                told(f"KVM is not used: {why}; the guest's processor is emulated, some ten times slower")
        code = sources(shares["code"]) if "code" in shares else ""
        kernel, initrd, root = (Path(f"/proc/self/fd/{fd}") for fd in files)
        held = Boot(kernel, initrd, root, boot.accel)
        order = Order(name, held, size, shares, files, confined.user(), code)
        if restore and (folder := _saved(image, order, version, told)) is not None:
            try:
                return _restored(order, folder, why)
            except BrokenStateError as e:
                if lent.possible():
                    told(f"the saved guest could not be restored and is removed; this one is booted. {e}")
                    with suppress(FileNotFoundError):  # another start was faster
                        saved.remove(folder)
                else:
                    told(f"no guest is restored where the kernel forbids seccomp_unotify(2); this one is booted. {e}")
        return _patiently(lambda: _launched(order, why), told)
    finally:
        for fd in files:
            os.close(fd)


def _files(image: Image, boot: Boot) -> tuple[int, ...]:
    """Open what is booted; LabError when it is not what was built, or when somebody else can change it."""
    found = trusted.verified(image.folder, [f.name for f in (boot.kernel, boot.initrd, boot.root)], _digests(image))
    if found.damaged:
        found.close()
        raise LabError(damaged(image.digest, found.damaged))
    for fd in found.files.values():
        if not os.fstat(fd).st_mode & 0o004 and os.geteuid() == 0:
            os.fchmod(fd, 0o644)  # QEMU is not run as root
    return tuple(found.files.values())


def _digests(image: Image) -> dict[str, str]:
    """Return the digests of an image's files that it was built with, as far as that is known."""
    try:
        files = json.loads(trusted.read(image.folder / "manifest.json"))["files"]
        return {name: str(files[name]["sha256"]) for name in files}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def damaged(digest: str, names: Iterable[str]) -> str:
    """Return the sentence for an image that is not what was built."""
    return f"image {digest} is damaged ({', '.join(names)}): `testbed image build --again` makes it anew"


def _patiently(boot: Callable[[], T], told: Told) -> T:
    """Boot, and once more if the kernel panics: an emulated one may trip over code that it patches (Oops: int3)."""
    try:
        return boot()
    except PanicError as e:
        told(f"{str(e).partition(';')[0]} while it was booted; it is booted once more")
    return boot()  # here: what is forked must not be in the midst of an exception


def _saved(image: Image, order: Order, version: str, told: Told) -> Path | None:
    digest = qemu.digest(order.boot, order.size, image.digest, version, _processor())
    trusted.folder(image.folder)
    if (folder := saved.find(image.folder, digest, order.code)) is not None:
        return folder

    def fill(work: Path) -> None:
        began = time.monotonic()
        told("a guest of this size is booted once and saved; later ones start from that")
        code = {slot: share for slot, share in order.shares.items() if slot == "code"}

        def boot() -> None:
            for left in work.iterdir():
                left.unlink()
            made = replace(order, name=f"save-{uuid4().hex[:8]}", shares=code, save=work)

            def saved_there(owner: socket.socket, life: FileIO) -> None:
                _answer(made.name, owner)
                owner.close()
                life.close()

            sandbox.launch(made.name, keeper.serve(made), saved_there, GUESTS, _SPACES, inside=order.files)

        _patiently(boot, told)
        trusted.remember(work, saved.FILES)
        told(f"saved after {time.monotonic() - began:.1f} s")

    try:
        return saved.make(
            image.folder, digest, order.code, fill, lambda: told("another start is saving such a guest; waiting")
        )
    except OSError as e:
        told(f"no guest can be saved beside the image: {e}; this one is booted")
        return None


def _restored(order: Order, folder: Path, why: str) -> Guest:
    """Start a guest from a saved one; BrokenStateError when that is not what was saved."""
    try:
        found = saved.opened(folder)
    except FileNotFoundError as e:
        raise BrokenStateError(f"guest {order.name}: {e.filename} is not there") from e
    try:
        if found.damaged:
            what = " and ".join(found.damaged)
            raise BrokenStateError(f"guest {order.name}: {what} of {folder} changed since it was saved")
        return _launched(replace(order, restore=Saved(**found.files)), why)
    finally:
        found.close()


def _launched(order: Order, why: str) -> Guest:
    more = () if order.restore is None else (order.restore.ram, order.restore.state)

    def started(owner: socket.socket, life: FileIO) -> Guest:
        return _guest(asking.told(_answer(order.name, owner)), life, why, owner)

    return sandbox.launch(order.name, keeper.serve(order), started, GUESTS, _SPACES, inside=(*order.files, *more))


def _guest(told: About, life: FileIO, why: str, owner: socket.socket | None) -> Guest:
    holder = ending.process(life)
    folder = Path(f"/proc/{holder}/root{furniture.FOLDER}")
    return Guest(
        name=told.name,
        ssh=keeper.ssh(folder, told.port),
        size=told.size,
        accel=told.accel,
        why=why,
        restored=told.restored,
        phases=told.phases,
        shares=told.folders(),
        holder=holder,
        life=life,
        console=FileIO(os.open(folder / "console", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)),
        owner=owner,
    )


def guests() -> list[str]:
    """Return the names of this user's guests that are up or coming up."""
    return reach.names(GUESTS)


def find(name: str) -> Guest:
    """Return a guest that is up."""
    with _connect(name) as connection:
        _, life = reach.holder(name, connection)
        return _guest(asking.told(_asked(name, connection, Status())), life, "", None)


def keep(guest: Guest) -> None:
    """Let a guest outlive this process."""
    with _connect(guest.name) as connection:
        _asked(guest.name, connection, Keep())
    if guest.owner is not None:
        guest.owner.close()


def stop(guest: Guest) -> None:
    """End a guest and everything that runs in it; return when nothing is left."""
    with suppress(LabError, BrokenPipeError), _connect(guest.name) as connection:
        asking.ask(connection, Stop())
    ending.await_end(guest.name, guest.life, 10)
    if guest.owner is not None:
        guest.owner.close()


def alive(guest: Guest) -> About:
    """Return what a guest's keeper tells of it; LabError, with the end of its console, when it is gone."""
    try:
        connection = _connect(guest.name)
    except LabError as e:
        raise LabError(_gone(guest)) from e
    with connection:
        try:
            connection.settimeout(10)
            asking.ask(connection, Status())
            return asking.told(asking.heard(connection))
        except (EOFError, OSError) as e:
            raise LabError(_gone(guest)) from e


def call(
    guest: Guest,
    argv: Sequence[str],
    *,
    cwd: str = "/root",
    env: Mapping[str, str] | None = None,
    streams: Sequence[int] = (0, 1, 2),
    tty: bool = False,
    hears: Hears | None = None,
) -> int:
    """Run a command in a guest on these streams; return its exit status, 128 + n for signal n.

    What comes from the descriptor of `hears` meanwhile is given to its function.

    `testbed` as the first word is the command line in the share `code`. SIGINT, SIGQUIT, SIGTERM and SIGHUP of this
    process are the command's, which also ends when this process is killed. LabError when the guest ends meanwhile,
    or the ssh that carries the command.
    """
    shared = alive(guest).shared
    name = uuid4().hex
    environment = dict(env or {})
    digest = "-"
    if code := guest.shares.get("code"):
        digest = sources(code)
        environment["PYTHONPATH"] = code.at
    words = ("exec", "/usr/sbin/testbed-call", name, digest, cwd, *(f"{k}={v}" for k, v in environment.items()))
    ssh = (*guest.ssh[:-1], "-tt" if tty else "-T", guest.ssh[-1], shlex.join((*words, "--", *argv)))
    with _connect(guest.name) as connection, _Signals() as signals:
        child = subprocess.Popen(
            ssh,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            # A terminal's Ctrl-C is for the command and not for ssh; with a terminal of its own ssh passes it on.
            start_new_session=not tty,
            preexec_fn=lambda: linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        try:
            asking.ask(connection, Call(name))  # the guest is told if this process goes away before the command
            status = _await(guest, child, connection, signals, name, -1 if tty else streams[1], hears)
            # An ssh whose shared connection breaks ends with 255, as many a command does.
            if status < 0 or (status == 255 and shared and not alive(guest).shared):
                how = f"ssh was killed by {signal.Signals(-status).name}" if status < 0 else "its ssh ended"
                raise LabError(f"guest {guest.name}: the connection to it broke ({how}), and what ran there with it")
            if child.poll() is not None:
                asking.ask(connection, Ended())
            return status
        finally:
            child.kill()
            child.wait()


def _await(
    guest: Guest,
    child: subprocess.Popen[bytes],
    connection: socket.socket,
    signals: _Signals,
    name: str,
    out: int,
    hears: Hears | None,
) -> int:
    """Return the exit status of ssh; the command hangs up when nobody reads `out` (-1: a terminal) any more."""
    ended = os.pidfd_open(child.pid)
    poll = select.poll()
    for source in (ended, connection.fileno(), signals.read, *([hears[0]] if hears is not None else [])):
        poll.register(source, select.POLLIN)
    if out >= 0:
        poll.register(out, 0)  # POLLERR or POLLHUP
    try:
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if hears is not None and hears[0] in ready:
                hears[1](os.read(hears[0], 1 << 16))
            if out in ready:
                # Dropbear does not pass on that its channel's other end takes no more, and so would write on and on.
                poll.unregister(out)
                if not select.select([ended], [], [], _LAST_WORDS)[0]:
                    return 128 + signal.SIGPIPE
            if connection.fileno() in ready:
                _hear(guest, connection)
            if signals.read in ready:
                for number in os.read(signals.read, 64):
                    asking.ask(connection, Signal(name, number))
            if ended in ready:
                status = child.wait()
                # 255 is the command's, or ssh's own: a guest that is ending is given time to say so.
                while status == 255 and select.select([connection], [], [], 2)[0]:
                    _hear(guest, connection)
                return status
    finally:
        os.close(ended)


def _hear(guest: Guest, connection: socket.socket) -> None:
    """Read what a keeper says; LabError when that is the end of its guest."""
    try:
        asking.heard(connection)
    except EOFError:
        raise LabError(_gone(guest)) from None


class _Signals(Struct):
    """The signals of this process that are a command's, as bytes of a pipe while this is entered."""

    read: int = -1
    write: int = -1
    before: dict[int, Any] = field(default_factory=dict)
    wake: int = -1

    def __enter__(self) -> _Signals:
        self.read, self.write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
            self.before[number] = signal.signal(number, lambda *_: None)
        self.wake = signal.set_wakeup_fd(self.write, warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self.wake)
        for number, handler in self.before.items():
            signal.signal(number, handler)
        for fd in (self.read, self.write):
            os.close(fd)


def _gone(guest: Guest) -> str:
    end = keeper.last_rows(console.text(guest.console.fileno()))
    how = f"it was ended, or its keeper, process {guest.holder}, was killed"
    return f"guest {guest.name}: {how}; the end of its console:{end}"


def _connect(name: str) -> socket.socket:
    return reach.call(name, GUESTS)


def _asked(name: str, connection: socket.socket, question: asking.Asked) -> Raw:
    connection.settimeout(reach.ANSWERS)
    try:
        asking.ask(connection, question)
        return _answer(name, connection)
    except (BrokenPipeError, ConnectionResetError) as e:
        raise LabError(f"guest {name}: its keeper process ended (killed?)") from e
    except TimeoutError as e:
        raise SilentError(f"guest {name}: its keeper does not answer (is it stopped, or still booting?)") from e


def _answer(name: str, connection: socket.socket) -> Raw:
    try:
        return asking.heard(connection)
    except EOFError as e:
        raise LabError(f"guest {name}: its keeper process ended (killed?)") from e


def _check(shares: Mapping[str, Share]) -> None:
    for slot, share in shares.items():
        assert slot in qemu.SLOTS, slot
        if not share.folder.is_dir():
            raise LabError(f"{share.folder}: no such folder to share with a guest")
        if share.folder.resolve().is_relative_to("/run"):
            raise LabError(f"{share.folder}: a guest has a /run of its own; folders below /run can't be shared with it")
    require_programs()


def require_programs() -> None:
    """Raise Unsupported when a program is missing that a guest needs, and say how to get it."""
    for tool in _TOOLS:
        _found(tool)


def _found(tool: str) -> str:
    if (path := shutil.which(tool)) is None:
        raise Unsupported(f"a microVM needs {tool}, which is not in PATH: apt-get install {_TOOLS[tool]}")
    return path


def qemu_version() -> str:
    """Return what changes when QEMU is replaced; asking it for its version takes as long as a restore."""
    program = _found("qemu-system-x86_64")
    found = os.stat(program)
    return f"{os.path.realpath(program)} {found.st_size} {found.st_mtime_ns}"


def _processor() -> str:
    rows = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    return "\n".join(r for r in rows if r.split("\t")[0] in ("vendor_id", "model name", "flags", "microcode"))


def sources(code: Share) -> str:
    """Return the digest of testbed's sources and of their place: a guest that imported others imports these anew."""
    found = hashlib.sha256(code.at.encode())
    for file in sorted((code.folder / "testbed").rglob("*.py")):
        found.update(str(file.relative_to(code.folder)).encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def booted(image: Image, accel: str) -> Boot:
    """Return what of an image is booted."""
    return Boot(kernel(image), image.folder / "initrd.gz", image.folder / "root.squashfs", accel)


def kernel(image: Image) -> Path:
    """Return the image's kernel, unpacked once if the host can: an emulated processor takes 2 s to do that itself."""
    plain = image.folder / "vmlinux"
    if plain.exists():
        return plain
    packed = image.folder / "vmlinuz"
    data = trusted.read(packed, 1 << 28)
    begin = data.find(b"\x28\xb5\x2f\xfd")  # Debian's kernels are zstd
    if begin < 0 or shutil.which("zstd") is None:
        return packed
    # zstd complains of what follows the kernel, and has unpacked it by then.
    done = subprocess.run(("zstd", "-dcq"), input=data[begin:], capture_output=True, check=False)
    if not done.stdout.startswith(b"\x7fELF"):
        return packed
    part = plain.with_name(f".vmlinux-{os.getpid()}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
            file.write(done.stdout)
        part.rename(plain)
    except OSError:
        return packed
    return plain
