"""A command line that another machine performs, with the files that it reads."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from testbed import __version__
from testbed.errors import LabError
from testbed.lab import sources
from testbed.lab.asker import Asker
from testbed.linux.kernel_log import kernel_faults
from testbed.machines.choose import Choice
from testbed.machines.guest import command, console
from testbed.machines.guest.command import Hears
from testbed.machines.guest.microvm import Guest
from testbed.machines.ssh import remote, request
from testbed.machines.ssh.known import Known
from testbed.machines.ssh.relayed import relayed
from testbed.machines.ssh.remote import Target
from testbed.machines.ssh.request import Request

Machine = Target | Guest


class Errand(Struct, frozen=True):
    """A command line for another machine; each Path in it is a file that it reads."""

    choice: Choice
    words: Sequence[str | Path]
    files: dict[Path, str]
    began: float | None = (
        None  # when the command line that has it began (CLOCK_MONOTONIC), for what it says of its time
    )


def target_of(machine: Known) -> Target:
    """Return how ssh reaches a machine that the user has added."""
    return Target(machine.name, machine.words(), (machine.program,))


def enter(machine: Machine, argv: Sequence[str], streams: tuple[int, ...], *, terminal: bool = False) -> int:
    """Run the command line there with our input, its output and errors on these streams; return its exit status."""
    if isinstance(machine, Target):
        return remote.call(machine, argv, streams, terminal=terminal)
    env = {"TERM": os.environ.get("TERM", "dumb"), "SHELL": "/bin/bash"}
    return _call(machine, ("testbed", *argv), (0, *streams), env, terminal)


def perform(machine: Machine, asked: Request) -> int:
    """Run the command line there with the files that it reads; return its exit status."""
    with relayed() as streams:
        return perform_on(machine, asked, streams)


def perform_on(machine: Machine, asked: Request, streams: tuple[int, ...], hears: Hears | None = None) -> int:
    """Run the command line there with its output and errors on these streams; return its exit status."""
    if isinstance(machine, Target):
        return remote.ask(machine, asked, streams, hears)
    body = request.encode(asked)
    stdin = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(stdin, body)
        os.lseek(stdin, 0, os.SEEK_SET)
        return _call(machine, ("testbed", "serve-request"), (stdin, *streams), hears=hears)
    finally:
        os.close(stdin)


def _call(
    machine: Guest,
    words: Sequence[str],
    streams: Sequence[int],
    env: Mapping[str, str] | None = None,
    tty: bool = False,
    hears: Hears | None = None,
) -> int:
    """Run a command in a guest; LabError if it fails and the guest's kernel reported a fault meanwhile."""
    mark = os.fstat(machine.console.fileno()).st_size
    status = command.call(machine, words, streams=streams, env=env, tty=tty, hears=hears)
    faults = kernel_faults(console.since(machine.console.fileno(), mark).decode(errors="replace")) if status else []
    if faults:
        raise LabError(f"guest {machine.name}: its kernel says: {faults[-1]}")
    return status


def asked(machine: Machine, errand: Errand, results: str = "", case: int = -1) -> Request:
    """Return an errand as a request, with the paths that its files have on the other machine."""
    there = _below({Path(os.path.abspath(path)): text for path, text in errand.files.items()})
    words = [there[Path(os.path.abspath(word))][0] if isinstance(word, Path) else word for word in errand.words]
    words += ["--results", results, "--case", str(case)] if results else []
    file = os.path.abspath(next(iter(errand.files))) if errand.files else ""
    under = list(there.values())[1][0] if len(errand.files) > 1 else ""
    spent = time.monotonic() - errand.began if errand.began is not None else 0.0
    env = Asker(file=file, under=under, machine=errand.choice.machine, spent=spent).variables()
    tied = isinstance(machine, Target)
    # A guest has our own sources, of which an emulated processor need not compute the digest.
    version = sources.version() if tied else __version__
    token, texts = secrets.token_hex(8), dict(there.values())
    return Request(tuple(words), token, texts, env, signals=tied, keeps=bool(results), version=version)


def _below(files: dict[Path, str]) -> dict[Path, tuple[str, str]]:
    """Return (path below the folder that contains all, text) of each file."""
    top = Path(os.path.commonpath([file.parent for file in files])) if files else Path("/")
    return {file: (str(file.relative_to(top)), text) for file, text in files.items()}
