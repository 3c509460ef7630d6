"""What a machine is asked over ssh: a command line with the files that it reads, and the end that performs it.

The asking end writes a request on standard input and then, where `signals` says so, a byte for every signal; the end
of its input is that of the command. What it reads in the end is the command's own output and exit status.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from msgspec import Struct, convert, field
from msgspec.structs import asdict

from testbed import __version__
from testbed.errors import InputError, LabError, Unsupported
from testbed.lab import asker, sources
from testbed.lab.messages import BROKEN, LONGEST
from testbed.linux import calls as linux

_TOKEN = re.compile(r"[0-9a-f]{16}")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
RESULTS = "results"  # in the folder of a request
# s: for the end of a lab; that results are kept after a connection broke; after which abandoned ones are removed.
_END, _PATIENCE, _STALE = 30.0, 20.0, 86400.0


class Request(Struct, frozen=True):
    """A command line of this program, the files that it reads (path below its folder: text), and its environment."""

    argv: tuple[str, ...]
    token: str
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    signals: bool = True  # come on standard input, whose end is that of the command
    keeps: bool = False  # results, for its asker, who comes for them by `collect`
    version: str = __version__


def encode(request: Request) -> bytes:
    """Return a request as it is sent: a line with its length, then the request."""
    body = json.dumps(asdict(request)).encode()
    return b"%d\n" % len(body) + body


def folder(token: str) -> Path:
    """Return the folder of a request, on the machine that performs it."""
    if not _TOKEN.fullmatch(token):
        raise InputError(f"{token!r} is not a valid token of a request")
    return Path(os.environ.get("TMPDIR") or "/tmp").resolve() / f"testbed-{os.geteuid()}-{token}"


def serve(program: Callable[[], NoReturn]) -> int:
    """Perform the request on standard input in a child, by `program`, and return its exit status."""
    asker.untie(os.environ)  # of this process, and not of the lab's
    request = _read(0)
    if not sources.same(request.version):
        ours = sources.version() if "+" in request.version else __version__
        raise Unsupported(
            f"versions differ: you run testbed {request.version}, this machine has {ours}; install the same on both"
        )
    place = folder(request.token)
    gone = False
    try:
        _sweep(place)
        place.mkdir(mode=0o700)
        lock = os.open(place, os.O_RDONLY | os.O_CLOEXEC)  # the child has it too: it is held until both have ended
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write(request, place)
        status, gone = _perform(request, place, program)
        os.close(lock)
        return status
    except OSError as e:
        raise LabError(f"the request can't be performed: {e}") from e
    finally:
        if gone and request.keeps:  # the asker of a connection that broke may connect again
            _await(lambda: not place.exists(), _PATIENCE)
        if gone or not (request.keeps and (place / RESULTS).is_dir()):
            shutil.rmtree(place, ignore_errors=True)


def collect(token: str) -> None:
    """Write the files of a request's results to standard output; remove its folder when a byte confirms them.

    Before each is a line with its size and name, and after the last one an empty line.
    """
    place = folder(token)
    if place.is_dir() and not _await(lambda: _ended(place), _END):
        raise LabError(f"the command is still running; its results are going to be in {place / RESULTS}")
    with os.fdopen(os.dup(1), "wb") as out:
        for file in sorted((place / RESULTS).rglob("*")):
            if file.is_file() and not file.is_symlink() and "\n" not in str(file):
                with file.open("rb") as content:
                    size = os.fstat(content.fileno()).st_size
                    out.write(b"%d %s\n" % (size, os.fsencode(file.relative_to(place / RESULTS))))
                    _copy(content, out, size)
        out.write(b"\n")
    if os.read(0, 1):
        shutil.rmtree(place, ignore_errors=True)


def _copy(source: IO[bytes], out: IO[bytes], size: int) -> None:
    """Write exactly as many bytes as were announced."""
    while size and (part := source.read(min(size, 1 << 20))):
        out.write(part)
        size -= len(part)
    out.write(bytes(size))


def _read(fd: int) -> Request:
    said = b""
    while not said.endswith(b"\n"):
        if len(said) > len(str(LONGEST)):
            raise InputError("standard input is not a request of testbed: it does not begin with a length")
        said += _some(fd, 1)
    try:
        body, size = bytearray(), int(said)
        if not 0 <= size <= LONGEST:
            raise ValueError(f"{size} bytes, of which {LONGEST} are the most")
        while len(body) < size:
            body += _some(fd, size - len(body))
        found = json.loads(body)
        if not sources.same(str(found["version"])):
            return Request((), "", version=str(found["version"]))  # its other fields may be unknown here
        return convert(found, Request)
    except (*BROKEN, KeyError, TypeError) as e:
        raise InputError(f"standard input is not a request of testbed: {e}") from e


def _some(fd: int, most: int) -> bytes:
    if not (found := os.read(fd, min(most, 1 << 16))):
        raise InputError("standard input ended before the request did")
    return found


def _sweep(place: Path) -> None:
    """Remove the folders of requests whose results were not fetched within a day."""
    for other in place.parent.glob(f"testbed-{os.geteuid()}-*"):
        with suppress(OSError):  # another one removes it
            found = other.lstat()
            old = time.time() - found.st_mtime > _STALE and found.st_uid == os.geteuid()
            if old and _TOKEN.fullmatch(other.name.rpartition("-")[2]) and _ended(other):
                shutil.rmtree(other, ignore_errors=True)


def _ended(place: Path) -> bool:
    """Return whether the request of a folder has ended."""
    try:
        lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _await(fact: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not (true := fact()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return true


def _write(request: Request, place: Path) -> None:
    for name, text in request.files.items():
        file = place / name
        if ".." in file.parts or not file.is_relative_to(place):
            raise InputError(f"{name!r} is outside of the request's folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _perform(request: Request, place: Path, program: Callable[[], NoReturn]) -> tuple[int, bool]:
    """Run the command line in a child; return its exit status, and whether its asker went away meanwhile."""
    parent = os.pidfd_open(os.getpid())
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until each of both has handlers of its own
    if (child := os.fork()) == 0:
        _become(request, place, parent, mask, program)
    life = os.pidfd_open(child)

    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(OSError):  # ssh may be gone, and the child at its end
            signal.pidfd_send_signal(life, number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    gone = _relay(life, listens=request.signals)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # there is nobody left to pass them on to
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status, gone


def _become(
    request: Request, place: Path, parent: int, mask: Iterable[int], program: Callable[[], NoReturn]
) -> NoReturn:
    """Become the command line that was asked for; it ends with its parent, which ends with the connection."""
    try:
        os.setpgrp()  # a signal to the group of its parent comes from that, once
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
        if select.select([parent], [], [], 0)[0]:
            os._exit(128 + signal.SIGTERM)  # it ended before that
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(place)
        os.environ.update(request.env)
        sys.argv = ["testbed", *request.argv]
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        program()
    finally:
        os._exit(3)  # this is a child: it must not go on as its parent


def _relay(life: int, listens: bool) -> bool:
    """Pass on the signals that arrive as bytes until the child has ended; return whether their sender went away."""
    sources = [life, 0] if listens else [life]
    while life not in select.select(sources, [], [])[0]:
        said = os.read(0, 64)
        for number in said or (signal.SIGTERM,):  # the command ends in its own way
            if number in SIGNALS:
                signal.pidfd_send_signal(life, number)
        if not said:
            sources = [life]
    return listens and len(sources) == 1
