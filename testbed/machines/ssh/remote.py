"""Run the command line on another machine through ssh, as if it ran here."""

from __future__ import annotations

import errno
import os
import select
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import IO, NoReturn

from msgspec import Struct

from testbed.errors import LabError, Unsupported
from testbed.lab.asker import Asker
from testbed.linux import calls as linux
from testbed.machines import collected
from testbed.machines.collected import Taken
from testbed.machines.guest.command import Hears
from testbed.machines.ssh import request
from testbed.machines.ssh.request import Request

_HEADER = 1 << 20  # bytes of a line, and of what a machine says of itself
_DIGITS = 18  # of a file's size
_BROKEN = 255  # the exit status of ssh(1) itself, and one that a command may have
_NOT_RUN = (126, 127)  # a shell's, for a program that it can't run or find
# What ssh's log has beside its reasons.
_CHATTER = (
    "debug1:",
    "OpenSSH_",
    "Authenticated ",
    "Transferred: ",
    "Bytes per second: ",
    "Warning: Permanently added",
)


class NotReachedError(LabError):
    """The machine could not be reached, and nothing was started there."""


class Target(Struct, frozen=True):
    """A machine as ssh reaches it: the words before a command, from `ssh` to the destination, and the program there."""

    name: str
    words: tuple[str, ...]
    program: tuple[str, ...]


def call(target: Target, argv: Sequence[str], streams: Sequence[int] = (1, 2), *, terminal: bool = False) -> int:
    """Run a command line there, with our input and its output and errors on `streams`; return its exit status.

    With a terminal, its keys are those of the far side. Without, a signal to this process ends ssh, and that the
    command.
    """
    # ssh stays in our process group: it may have to read from our terminal.
    out, err = streams
    with (
        _ssh(target, argv, terminal=terminal, stdout=out, stderr=err) as ssh,
        _heard(ssh.process.send_signal) as heard,
    ):
        try:
            return ssh.status()
        except LabError:
            if heard:
                return 128 + heard[0]
            raise


def ask(target: Target, asked: Request, streams: Sequence[int] = (1, 2), hears: Hears | None = None) -> int:
    """Run a command line there with the files that it reads and return its exit status; it gets our signals.

    What comes from the descriptor of `hears` meanwhile is given to its function.
    """
    out, err = streams
    with _ssh(target, ("serve-request",), stdin=subprocess.PIPE, stdout=out, stderr=err, group=0) as ssh:
        _say(ssh, request.encode(asked))
        with _heard(lambda number: _say(ssh, bytes([number]))):
            if hears is not None:
                _hear(ssh, *hears)
            status = ssh.status()
    if status in _NOT_RUN:
        _lacks(target, "it is not there")
    return status


def fetch(target: Target, token: str, taken: Taken) -> None:
    """Fetch the raw files of a request, all of them or none."""
    try:
        with (
            TemporaryDirectory(prefix=".fetched-", dir=taken.folder) as work,
            _ssh(target, ("collect-request", token), stdin=subprocess.PIPE, stdout=subprocess.PIPE, group=0) as ssh,
        ):
            assert ssh.process.stdout is not None
            came = Taken(Path(work))
            if not _receive(ssh.process.stdout, came):
                status = ssh.status()  # it may have said why
                raise LabError(f"machine {target.name}: its results could not be fetched: status {status}")
            for made in Path(work).iterdir():
                made.rename(taken.folder / made.name)
            taken.about, taken.left = came.about, came.left
            _say(ssh, b"\n")
            ssh.status()
    except OSError as e:
        raise LabError(f"machine {target.name}: its results could not be fetched: {e}") from e


def _receive(stream: IO[bytes], taken: Taken) -> bool:
    """Take the files that `request.collect` sends after their sizes and names; return whether all have come."""
    for row in iter(lambda: stream.readline(_HEADER), b""):
        if row == b"\n":
            return True
        size, _, name = row.decode(errors="surrogateescape").rstrip("\n").partition(" ")
        if not row.endswith(b"\n") or not size.isdecimal() or len(size) > _DIGITS:
            return False
        if name == collected.ABOUT:
            taken.about = stream.read(min(int(size), _HEADER))
        elif not taken.take(name, int(size), lambda out, size: _copied(stream, out, size)):
            with open(os.devnull, "wb") as null:
                _copied(stream, null.fileno(), int(size))
    return False


def _copied(stream: IO[bytes], out: int, size: int) -> None:
    while size:
        if not (part := stream.read(min(size, 1 << 20))):
            raise OSError(errno.EPIPE, "the connection ended before the file did")
        size -= len(part)
        while part:
            part = part[os.write(out, part) :]


def version(target: Target) -> str:
    """Return the version of the program there; without one, raise an error in the words of ssh or the machine."""
    pipe = subprocess.PIPE
    with _ssh(target, ("--version",), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as ssh:
        out, err = (text.decode(errors="replace").strip() for text in ssh.process.communicate())
        status = ssh.status()
    if status in _NOT_RUN:
        _lacks(target, err.rpartition("\n")[2])
    if status or not out.startswith("testbed "):
        said = (err or out).rpartition("\n")[2]
        raise LabError(f"machine {target.name}: {shlex.join(target.program)} --version says {said!r}, status {status}")
    return out.removeprefix("testbed ")


class _Ssh(Struct, frozen=True):
    """An ssh that runs a command on a machine, and its log."""

    target: Target
    process: subprocess.Popen[bytes]
    log: int

    def status(self) -> int:
        """Return the exit status of the command at its end; LabError in ssh's words if there is none."""
        status = self.process.wait()
        rows = os.pread(self.log, 1 << 20, 0).decode(errors="replace").splitlines()
        # RFC 4254, section 6.10: this message brings a command's exit status, so it is the command's.
        if status == _BROKEN and not any("rtype exit-status" in row for row in rows):
            said = [row.strip() for row in rows if row.strip() and not row.startswith(_CHATTER)]
            why = said[-1] if said else "ssh gave no reason"
            if any("rtype exit-signal" in row for row in rows):
                raise LabError(f"machine {self.target.name}: testbed was killed there")
            if any(row.startswith("Authenticated ") for row in rows):
                raise LabError(f"machine {self.target.name}: the connection broke: {why}")
            raise NotReachedError(f"machine {self.target.name}: it can't be reached: {why}")
        return status if status >= 0 else 128 - status


@contextmanager
def _ssh(
    target: Target,
    argv: Sequence[str],
    *,
    terminal: bool = False,
    group: int | None = None,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Iterator[_Ssh]:
    """Yield an ssh that runs a command line there; it ends with this, whatever happens."""
    log = os.memfd_create("ssh.log", os.MFD_CLOEXEC)  # ssh's own words, apart from what the command says
    first, *options = target.words
    # What ssh passes on is one line for a shell, which is to become the command; that ends with the connection.
    told = Asker(tied=True, at=f"@{target.name}").variables()
    there = "exec " + shlex.join(("env", *(f"{k}={v}" for k, v in told.items()), *target.program, *argv))
    tell = ("-E", f"/proc/{os.getpid()}/fd/{log}", "-o", "LogLevel=DEBUG1")
    try:
        process = subprocess.Popen(
            (first, "-tt" if terminal else "-T", *tell, *options, there),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            process_group=group,
            preexec_fn=lambda: linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL),
        )
    except FileNotFoundError as e:
        raise Unsupported(f"machine {target.name}: {first} is not in PATH: apt-get install openssh-client") from e
    try:
        yield _Ssh(target, process, log)
    finally:
        process.kill()  # does nothing when it has ended
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        os.close(log)


def _say(ssh: _Ssh, said: bytes) -> None:
    assert ssh.process.stdin is not None
    with suppress(BrokenPipeError):  # ssh ended: its status tells
        while said:
            said = said[os.write(ssh.process.stdin.fileno(), said) :]


def _lacks(target: Target, said: str) -> NoReturn:
    raise Unsupported(
        f"machine {target.name}: {shlex.join(target.program)} can't be run there ({said}): install it there, "
        "or name its path: `testbed machine add --program`"
    )


@contextmanager
def _heard(pass_on: Callable[[int], None]) -> Iterator[list[int]]:
    """Pass signals on instead of dying of them, as the other side decides what they mean; yield those that came."""
    heard: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        heard.append(number)
        pass_on(number)

    before = {n: signal.signal(n, handler) for n in request.SIGNALS if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield heard
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _hear(ssh: _Ssh, source: int, heard: Callable[[bytes], None]) -> None:
    """Pass what comes from a descriptor to a function until ssh ends."""
    ended = os.pidfd_open(ssh.process.pid)
    try:
        while ended not in (ready := select.select([source, ended], [], [])[0]):
            heard(os.read(ready[0], 1 << 16))
    finally:
        os.close(ended)
