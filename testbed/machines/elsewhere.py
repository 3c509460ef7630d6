"""Labs that are not on this kernel: in a guest of their own, or on a machine that ssh reaches."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from testbed import __version__, sandbox
from testbed.errors import LabError, Unsupported
from testbed.machines import known, microvm, remote, request
from testbed.machines.microvm import Guest
from testbed.machines.qemu import Share, Size
from testbed.machines.remote import Target
from testbed.machines.request import Request

Place = Target | Guest
Told = Callable[[str], None]
Progress = Callable[[str, float], None]
_RESULTS = "/results"  # in a guest: the results folder of the host


def target(name: str) -> Target:
    """Return a machine that the user has made known."""
    found = known.find(name)
    return Target(name, found.words(), (found.program,))


def find(lab: str) -> tuple[str, Place | None]:
    """Return a lab's name and where it is, None for here; LAB@MACHINE is on a machine that the user has named."""
    name, at, machine = lab.partition("@")
    if at:
        return name, target(machine)
    if name not in sandbox.names() and name in microvm.guests():
        return name, microvm.find(name)
    return name, None


def enter(place: Place, argv: Sequence[str], *, terminal: bool = False) -> int:
    """Run the command line there on this process's streams; return its exit status."""
    if isinstance(place, Target):
        return remote.call(place, argv, terminal=terminal)
    env = {"TERM": os.environ.get("TERM", "dumb")}
    return microvm.call(place, ("testbed", *argv), env=env, tty=terminal)


def perform(place: Place, asked: Request) -> int:
    """Run the command line there with the files that it reads; return its exit status."""
    if isinstance(place, Target):
        return remote.ask(place, asked)
    body = request.encode(asked)
    stdin = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(stdin, body)
        os.lseek(stdin, 0, os.SEEK_SET)
        return microvm.call(place, ("testbed", "serve-request"), streams=(stdin, 1, 2))
    finally:
        os.close(stdin)


def asked(place: Place, argv: Sequence[str], files: dict[Path, str], about: dict[str, object]) -> Request:
    """Return a request; a word of `argv` that is the path of a file becomes its path there."""
    there = _below({Path(os.path.abspath(path)): text for path, text in files.items()})
    paths = {str(path): there[Path(os.path.abspath(path))][0] for path in files}
    told: dict[str, object] = {"arguments": sys.argv[1:], **about}
    env = {request.ABOUT: json.dumps(told)}
    if isinstance(place, Target):
        told["machine"] = place.name
        env |= {request.AT: f"@{place.name}", request.ABOUT: json.dumps(told)}
    return Request(
        argv=tuple(paths.get(word, word) for word in argv),
        token=secrets.token_hex(8),
        files=dict(there.values()),
        env=env,
        signals=isinstance(place, Target),
    )


def _below(files: dict[Path, str]) -> dict[Path, tuple[str, str]]:
    """Return (path below the folder that all are in, text) of each file."""
    top = Path(os.path.commonpath([file.parent for file in files])) if files else Path("/")
    return {file: (str(file.relative_to(top)), text) for file, text in files.items()}


@contextmanager
def guest(name: str, size: Size, told: Told, progress: Progress, results: Path | None = None) -> Iterator[Guest]:
    """Yield a guest for one lab; it is gone afterwards unless it was kept."""
    from testbed.machines import image

    made = image.find() or image.build(progress)
    shares = {"code": Share(Path(__file__).parents[2], "/testbed")}
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        shares["results"] = Share(results.resolve(), _RESULTS, writable=True)
    found = microvm.start(made, size, name, shares, told=told)
    try:
        yield found
    finally:
        if found.owner is not None:
            microvm.stop(found)


def about(found: Guest) -> dict[str, object]:
    """Return what a manifest says of a guest."""
    from testbed.machines import image

    made = image.find()
    return {
        "machine": "microvm",
        "accelerator": found.accel,
        "accelerator_why": found.why,
        "restored": found.restored,
        "image": {"digest": made.digest, "packages": made.manifest.get("packages", {})} if made else None,
    }


def run(place: Place, argv: Sequence[str], files: dict[Path, str], facts: dict[str, object], out: Path) -> int:
    """Run an experiment there; its results are in the folder where they would be had it run here."""
    if isinstance(place, Target):
        made = asked(place, (*argv, "--results", request.RESULTS), files, facts)
        shown = f"{request.folder(made.token)}/{request.RESULTS}={out}"
        whole = Request(made.argv, made.token, made.files, {**made.env, request.SHOWN: shown}, fetched=True)
        try:
            return perform(place, whole)
        finally:
            remote.fetch(place, made.token, out)
    made = asked(place, (*argv, "--results", _RESULTS), files, {**about(place), **facts})
    whole = Request(
        made.argv, made.token, made.files, {**made.env, request.SHOWN: f"{_RESULTS}={out}"}, signals=False
    )
    try:
        return perform(place, whole)
    except LabError:
        _keep_console(place, out)
        raise


def _keep_console(found: Guest, out: Path) -> None:
    """Put the console of a guest that died into the results of its run."""
    folders = [f.parent for f in out.glob("*/*/manifest.json") if not f.parent.is_symlink()]
    if folders:
        found.console.seek(0)
        newest = max(folders, key=lambda folder: folder.stat().st_mtime)
        (newest / "console.log").write_bytes(found.console.read())


def same_version(place: Target) -> str:
    """Return the version there; Unsupported when it is not ours."""
    version = remote.version(place)
    if version != __version__:
        raise Unsupported(f"machine {place.name}: it has testbed {version}, and this is {__version__}; install the same")
    return version
