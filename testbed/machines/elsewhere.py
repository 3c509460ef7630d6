"""Labs that are not on this kernel: in a guest of their own, or on a machine that ssh reaches."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from testbed import __version__
from testbed.errors import LabError, Unsupported
from testbed.machines import console, here, known, microvm, remote, request, trusted
from testbed.machines.choose import MICROVM, Choice
from testbed.machines.known import Known
from testbed.machines.microvm import Guest
from testbed.machines.qemu import Share, Size, kernel_faults
from testbed.machines.relayed import relayed
from testbed.machines.remote import NotReachedError, Target
from testbed.machines.request import Request
from testbed.results import written

Place = Target | Guest
Told = Callable[[str], None]
Progress = Callable[[], AbstractContextManager[Callable[[str, float], None]]]  # entered where something takes long
_RESULTS = "/results"  # in a guest: the results folder of the host


class Errand(Struct, frozen=True):
    """A command line for another machine, where a Path is one of the files that it reads."""

    choice: Choice
    words: Sequence[str | Path]
    files: dict[Path, str]


class Elsewhere(Struct, frozen=True):
    """A lab that is on another machine."""

    lab: str
    place: Place

    def enter(self, words: Sequence[str]) -> int:
        """Run the command line there on this process's streams and return its exit status.

        A command of the user's own has the terminal itself; what the command line says is made visible.
        """
        if words[0] in ("exec", "shell"):
            return enter(self.place, words, (1, 2), terminal=all(os.isatty(fd) for fd in (0, 1)))
        with relayed() as streams:
            return enter(self.place, words, streams)

    def down(self) -> None:
        """Take the lab down, and its guest with it."""
        if isinstance(self.place, Target):
            with relayed((2,)) as (said,), open(os.devnull, "w") as null:
                status = enter(self.place, ("down", self.lab), (null.fileno(), said))
            if status:
                raise LabError(f"lab {self.lab}: machine {self.place.name} could not take it down; it said why above")
            return
        try:
            # However this ends, also by the kernel's hand in a guest without memory: the guest ends with the lab.
            with relayed((2,)) as (said,), open(os.devnull, "w") as null:
                microvm.call(self.place, ("testbed", "down", self.lab), streams=(0, null.fileno(), said))
        finally:
            microvm.stop(self.place)


def find(lab: str) -> Elsewhere:
    """Return a lab that is in a guest of its name, or LAB@MACHINE."""
    name, at, machine = lab.partition("@")
    return Elsewhere(name, target_of(known.find(machine)) if at else microvm.find(name))


def target_of(machine: Known) -> Target:
    """Return a machine that the user has named, as ssh reaches it."""
    return Target(machine.name, machine.words(), (machine.program,))


def enter(place: Place, argv: Sequence[str], streams: tuple[int, ...], *, terminal: bool = False) -> int:
    """Run the command line there with our input, its output and errors on these streams; return its exit status."""
    if isinstance(place, Target):
        return remote.call(place, argv, streams, terminal=terminal)
    env = {"TERM": os.environ.get("TERM", "dumb"), "SHELL": "/bin/bash"}
    return _call(place, ("testbed", *argv), (0, *streams), env, terminal)


def up(errand: Errand, lab: str, size: Size, told: Told, progress: Progress) -> int:
    """Bring a lab up, or change it, on another machine; its guest is kept when that went well."""
    if errand.choice.machine != MICROVM:
        place = target_of(known.find(errand.choice.machine))
        return perform(place, asked(place, errand, {}))
    if lab in microvm.guests():
        there = microvm.find(lab)
        return perform(there, asked(there, errand, {}))
    with guest(lab, size, told, progress) as made:
        if (status := perform(made, asked(made, errand, about(made)))) == 0 and "--dry-run" not in errand.words:
            microvm.keep(made)
        return status


def once(errand: Errand, lab: str, size: Size, told: Told, progress: Progress) -> int:
    """Run a command line that leaves no lab."""
    if errand.choice.machine != MICROVM:
        place = target_of(known.find(errand.choice.machine))
        return perform(place, asked(place, errand, {}))
    with guest(lab, size, told, progress) as made:
        return perform(made, asked(made, errand, {}))


def run(errand: Errand, lab: str, size: Size, told: Told, progress: Progress, out: Path) -> int:
    """Run an experiment elsewhere; its results are in the folder where they would be had it run here."""
    facts: dict[str, object] = {"git": here.commit(next(iter(errand.files)).parent)}
    if errand.choice.machine != MICROVM:
        return _run_there(target_of(known.find(errand.choice.machine)), errand, facts, told, out)
    with guest(lab, size, told, progress, out) as found:
        made = asked(found, errand, {**about(found), **facts}, results=_RESULTS)
        try:
            return perform(found, replace(made, env={**made.env, request.SHOWN: f"{_RESULTS}={out}"}))
        except LabError:
            _keep_console(found, out)
            raise


def _run_there(place: Target, errand: Errand, facts: dict[str, object], told: Told, out: Path) -> int:
    made = replace(asked(place, errand, facts, results=request.RESULTS), shown=str(out))
    broken: BaseException | None = None
    try:
        return perform(place, made)
    except BaseException as e:
        broken = e
        raise
    finally:
        if not isinstance(broken, NotReachedError):
            try:
                for name, folder in remote.fetch(place, made.token, out):
                    told(f"{out / name} was there already: the results are in {folder}")
            except LabError as e:
                if broken is None:
                    raise
                told(f"no results came: {e}")


def perform(place: Place, asked: Request) -> int:
    """Run the command line there with the files that it reads; return its exit status."""
    with relayed() as streams:
        return _perform(place, asked, streams)


def _perform(place: Place, asked: Request, streams: tuple[int, ...]) -> int:
    if isinstance(place, Target):
        return remote.ask(place, asked, streams)
    body = request.encode(asked)
    stdin = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(stdin, body)
        os.lseek(stdin, 0, os.SEEK_SET)
        return _call(place, ("testbed", "serve-request"), (stdin, *streams))
    finally:
        os.close(stdin)


def _call(
    place: Guest, words: Sequence[str], streams: Sequence[int], env: Mapping[str, str] | None = None, tty: bool = False
) -> int:
    """Run a command in a guest; LabError when it fails and the guest's kernel had a fault meanwhile."""
    mark = os.fstat(place.console.fileno()).st_size
    status = microvm.call(place, words, streams=streams, env=env, tty=tty)
    faults = kernel_faults(console.since(place.console.fileno(), mark).decode(errors="replace")) if status else []
    if faults:
        raise LabError(f"guest {place.name}: its kernel says: {faults[-1]}")
    return status


def asked(place: Place, errand: Errand, facts: dict[str, object], results: str = "") -> Request:
    """Return a request: the words of an errand, with the paths that its files have there."""
    there = _below({Path(os.path.abspath(path)): text for path, text in errand.files.items()})
    words = [there[Path(os.path.abspath(word))][0] if isinstance(word, Path) else word for word in errand.words]
    words += ["--results", results] if results else []
    tied = isinstance(place, Target)
    told = {"arguments": sys.argv[1:], **facts, **({"machine": place.name} if tied else {})}
    env = {request.ABOUT: json.dumps(told), request.FROM: os.getcwd()}
    if errand.files:
        env[request.FILE] = os.path.abspath(next(iter(errand.files)))
    if len(errand.files) > 1:
        env[request.UNDER] = list(there.values())[1][0]
    return Request(tuple(words), secrets.token_hex(8), dict(there.values()), env, signals=tied)


def _below(files: dict[Path, str]) -> dict[Path, tuple[str, str]]:
    """Return (path below the folder that all are in, text) of each file."""
    top = Path(os.path.commonpath([file.parent for file in files])) if files else Path("/")
    return {file: (str(file.relative_to(top)), text) for file, text in files.items()}


@contextmanager
def guest(name: str, size: Size, told: Told, progress: Progress, results: Path | None = None) -> Iterator[Guest]:
    """Yield a guest for one lab; it is gone afterwards unless it was kept."""
    from testbed.machines import image

    if (made := image.find()) is None:
        with progress() as say:
            made = image.build(say)
    shares = {"code": Share(Path(__file__).parents[2], "/testbed", only=("testbed",))}
    if results is not None:
        with written(results):
            results.mkdir(parents=True, exist_ok=True)
        shares["results"] = Share(results.resolve(), _RESULTS, writable=True)
    try:
        found = microvm.start(made, size, name, shares, told=told)
    except LabError as e:
        # What was written before it came to the disk: nothing of the file's own has changed since.
        if damaged := made.damaged():
            raise LabError(f"{microvm.damaged(made.digest, damaged)}\n{e}") from e
        raise
    try:
        yield found
    finally:
        if found.owner is not None and found.owner.fileno() >= 0:  # nobody has kept it
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


def _keep_console(found: Guest, out: Path) -> None:
    """Put the console of a guest that died into the results of its run."""
    folders = [f.parent for f in out.glob("*/*/manifest.json") if not f.parent.is_symlink()]
    if folders:
        newest = max(folders, key=lambda folder: folder.stat().st_mtime)
        (newest / "console.log").write_bytes(console.text(found.console.fileno()))


def require_guest() -> None:
    """Raise Unsupported when no guest can be had here, as far as that is known without starting one."""
    from testbed.machines import building, image

    microvm.require_programs()
    if image.find() is None:
        trusted.folder(image.cache())
        building.require(image.cache())


def same_version(place: Target) -> str:
    """Return the version there; Unsupported when it is not ours."""
    version = remote.version(place)
    if version != __version__:
        raise Unsupported(
            f"machine {place.name}: it has testbed {version}, this is {__version__}: install the same version"
        )
    return version
