"""What a machine is asked over ssh: a command line with the files that it reads, and the end that performs it.

The asking end writes a request on standard input and then, where `signals` says so, a line for every signal.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn

from testbed import __version__, linux
from testbed.errors import InputError, LabError, Unsupported

_TOKEN = re.compile(r"[0-9a-f]{16}")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
RESULTS = "results"  # in the folder of a request whose results are fetched afterwards
# Environment: end when the process that began this one does; the results folder there = as its reader knows it;
# what a manifest says of the machine and of who asked.
TIED, SHOWN, ABOUT = "TESTBED_TIED", "TESTBED_RESULTS", "TESTBED_MACHINE"
AT = "TESTBED_AT"  # environment: what its reader adds to the name of a lab


@dataclass(frozen=True, slots=True)
class Request:
    """A command line of this program, the files that it reads (path below its folder: text), and its environment."""

    argv: tuple[str, ...]
    token: str
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    signals: bool = True  # come on standard input, whose end is that of the command
    fetched: bool = False  # its folder stays until `collect`
    version: str = __version__


def encode(request: Request) -> bytes:
    """Return a request as it travels: its length in a line, then itself."""
    body = json.dumps(asdict(request)).encode()
    return b"%d\n" % len(body) + body


def folder(token: str) -> Path:
    """Return the folder of a request on the machine that performs it."""
    if not _TOKEN.fullmatch(token):
        raise InputError(f"{token!r} is no request's token")
    return Path("/tmp", f"testbed-{os.geteuid()}-{token}")


def serve() -> int:
    """Perform the request on standard input in a child and return its exit status."""
    request = _read(0)
    if request.version != __version__:
        raise Unsupported(
            f"versions differ: you run testbed {request.version}, this machine has {__version__}; install the same"
        )
    place = folder(request.token)
    try:
        place.mkdir(mode=0o700)
        _write(request, place)
        parent = os.pidfd_open(os.getpid())
        if (child := os.fork()) == 0:
            _become(request, place, parent)
        return _relay(child, [0] if request.signals else [])
    except OSError as e:
        raise LabError(f"the request can't be performed: {e}") from e
    finally:
        if not request.fetched:
            shutil.rmtree(place, ignore_errors=True)


def collect(token: str) -> None:
    """Write the results of a request to standard output as a tar archive, and remove its folder."""
    import tarfile

    place = folder(token)
    with os.fdopen(os.dup(1), "wb") as out, tarfile.open(fileobj=out, mode="w|") as archive:
        if (place / RESULTS).is_dir():
            archive.add(place / RESULTS, ".")
    shutil.rmtree(place, ignore_errors=True)


def _read(fd: int) -> Request:
    said = b""
    while not said.endswith(b"\n"):
        said += _some(fd, 1)
    try:
        body, size = b"", int(said)
        while len(body) < size:
            body += _some(fd, size - len(body))
        found = json.loads(body)
        if found["version"] != __version__:
            return Request((), "", version=str(found["version"]))  # its other fields may be unknown here
        return Request(**{**found, "argv": tuple(found["argv"])})
    except (ValueError, KeyError, TypeError) as e:
        raise InputError(f"standard input is no request of testbed: {e}") from e


def _some(fd: int, most: int) -> bytes:
    if not (found := os.read(fd, min(most, 1 << 16))):
        raise InputError("standard input ended before the request did")
    return found


def _write(request: Request, place: Path) -> None:
    for name, text in request.files.items():
        file = place / name
        if ".." in file.parts or not file.is_relative_to(place):
            raise InputError(f"{name!r} is outside of the request's folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def _become(request: Request, place: Path, parent: int) -> NoReturn:
    """Be the command line that was asked for; it ends with its parent, and that with the connection."""
    try:
        from testbed import cli

        os.setpgrp()  # a signal to the group of its parent comes from that, once
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
        if select.select([parent], [], [], 0)[0]:
            os._exit(143)  # it ended before that
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(place)
        os.environ.update(request.env)
        sys.argv = ["testbed", *request.argv]
        cli.script()
    finally:
        os._exit(3)  # this is a child: it must not go on as its parent


def _relay(child: int, wanted: list[int]) -> int:
    """Pass signals on, those that come as signals and those that come as lines, until the child has ended."""
    for number in SIGNALS:
        signal.signal(number, lambda n, _: os.kill(child, n))
    life = os.pidfd_open(child)
    while life not in (ready := select.select([*wanted, life], [], [])[0]):
        if 0 in ready:
            said = os.read(0, 64).split()
            for word in said or [b"%d" % signal.SIGTERM]:
                if word in [b"%d" % number for number in SIGNALS]:
                    os.kill(child, int(word))
            if not said:
                wanted = []  # whoever asked is gone; the command ends in its own way
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status
