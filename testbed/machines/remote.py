"""The command line on another machine: the same program there, reached by ssh, as if it ran here."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import FrameType
from typing import IO, NoReturn

from msgspec import Struct

from testbed import linux, results
from testbed.errors import LabError, Unsupported
from testbed.machines import request
from testbed.machines.request import Request

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
    """There was no connection to the machine: nothing was begun there."""


class Target(Struct, frozen=True):
    """A machine as ssh reaches it: the words before a command (ssh first, where to last), and the program there."""

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


def ask(target: Target, asked: Request, streams: Sequence[int] = (1, 2)) -> int:
    """Run a command line there with the files that it reads and return its exit status; it gets our signals."""
    out, err = streams
    with _ssh(target, ("serve-request",), stdin=subprocess.PIPE, stdout=out, stderr=err, group=0) as ssh:
        _say(ssh, request.encode(asked))
        with _heard(lambda number: _say(ssh, bytes([number]))):
            status = ssh.status()
    if status in _NOT_RUN:
        _lacks(target, "it is not there")
    return status


def fetch(target: Target, token: str, root: Path) -> list[tuple[str, Path]]:
    """Bring the results of a request here, whole or not at all, into the folder that would hold them were it here.

    Return (name there, folder here) of those whose name was taken.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            TemporaryDirectory(prefix=".fetched-", dir=root) as work,
            _ssh(target, ("collect-request", token), stdin=subprocess.PIPE, stdout=subprocess.PIPE, group=0) as ssh,
        ):
            assert ssh.process.stdout is not None
            try:
                latest = _unpack(ssh.process.stdout, Path(work))
            except tarfile.TarError as e:
                if status := ssh.status():  # says more than that
                    raise LabError(f"machine {target.name}: its results could not be fetched: status {status}") from e
                raise
            moved = _move(Path(work), root, latest)
            _say(ssh, b"\n")
            ssh.status()
            return moved
    except (tarfile.TarError, OSError) as e:
        raise LabError(f"machine {target.name}: its results could not be fetched: {e}") from e


def version(target: Target) -> str:
    """Return the version of the program there; an error of ours, in the words of ssh or the machine, without one."""
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
        """Return the exit status of the command in the end; LabError in ssh's words when there is none."""
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
    # What ssh passes on is one line for a shell, which is to become the command. TIED: that ends with the connection.
    tied = (f"{request.TIED}=1", f"{request.AT}=@{target.name}")
    there = "exec " + shlex.join(("env", *tied, *target.program, *argv))
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
    """Pass signals on instead of dying of them, for the other side decides what they mean; yield those that came."""
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


def _unpack(stream: IO[bytes], work: Path) -> dict[str, str]:
    """Unpack results into an empty folder; return what each `latest` points to. Nothing else but files is wanted."""
    latest = {}
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise tarfile.TarError(f"{member.name!r} is outside of the results")
            if member.issym() and path.name == "latest" and len(path.parts) == 2:
                latest[path.parts[0]] = member.linkname
            elif member.isdir():
                (work / path).mkdir(exist_ok=True)
            elif member.isfile() and (content := archive.extractfile(member)):
                with (work / path).open("wb") as file:
                    shutil.copyfileobj(content, file)
    return latest


def _move(work: Path, root: Path, latest: dict[str, str]) -> list[tuple[str, Path]]:
    """Move the folders of runs to where they belong; return (name, folder) of those whose name was taken."""
    moved = []
    for run in sorted(work.glob("*/*")):
        name = run.parent.name
        (root / name).mkdir(exist_ok=True)
        place = root / name / run.name
        if run.is_file():  # what is of all runs: that of the last ones
            run.replace(place)
            continue
        for n in range(1, 1000):
            with suppress(FileExistsError):
                place.mkdir()  # what makes a name ours; an empty folder is replaced by rename(2)
                break
            place = root / name / f"{run.name}.{n}"
        run.rename(place)
        if place.name != run.name:
            moved.append((f"{name}/{run.name}", place))
        if latest.get(name) == run.name:
            results.point_latest(results.Folder(place))
    return moved
