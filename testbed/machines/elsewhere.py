"""Labs that are not on this kernel: in a guest of their own, or on a machine that ssh reaches."""

from __future__ import annotations

import os
import secrets
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from testbed import __version__, results, sources
from testbed.asker import Asker
from testbed.errors import LabError, Unsupported
from testbed.linux.kernel_log import kernel_faults
from testbed.machines import collected, trusted
from testbed.machines.case import Begin, Case, Perform, Performed, Say, Told
from testbed.machines.choose import MICROVM, Choice
from testbed.machines.collected import Taken
from testbed.machines.guest import booted, command, console, microvm, staging
from testbed.machines.guest.command import Hears
from testbed.machines.guest.microvm import Guest
from testbed.machines.guest.qemu import Share, Size
from testbed.machines.ssh import known, remote, request
from testbed.machines.ssh.known import Known
from testbed.machines.ssh.relayed import relayed
from testbed.machines.ssh.remote import Target
from testbed.machines.ssh.request import Request
from testbed.results import Folder

Place = Target | Guest
Progress = Callable[[], AbstractContextManager[Callable[[str, float], None]]]  # entered where something takes long
_RESULTS = "/results"  # in a guest: what it writes of its runs
_LEFT = 5.0  # s for the removal of what a guest, which may go on writing, has left of a case: the rest goes with it
_REST = 2.0  # s that the end of an output may come after that of its command


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
                command.call(self.place, ("testbed", "down", self.lab), streams=(0, null.fileno(), said))
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
        return perform(place, asked(place, errand))
    if lab in microvm.guests():
        there = microvm.find(lab)
        return perform(there, asked(there, errand))
    with guest(lab, size, told, progress) as made:
        if (status := perform(made, asked(made, errand))) == 0 and "--dry-run" not in errand.words:
            microvm.keep(made)
        return status


def once(errand: Errand, lab: str, size: Size, told: Told, progress: Progress) -> int:
    """Run a command line that leaves no lab."""
    if errand.choice.machine != MICROVM:
        place = target_of(known.find(errand.choice.machine))
        return perform(place, asked(place, errand))
    with guest(lab, size, told, progress) as made:
        return perform(made, asked(made, errand))


@contextmanager
def cases(errand: Errand, lab: str, size: Size, told: Told, progress: Progress) -> Iterator[Perform]:
    """Yield a function that performs cases of an experiment elsewhere; its results have their folders here."""
    if errand.choice.machine != MICROVM:
        place = target_of(known.find(errand.choice.machine))
        yield lambda number, begin, say: _case_there(place, errand, number, begin, say, told)
        return
    with ExitStack() as kept:
        stage = kept.enter_context(staging.folder())
        guests: list[Guest] = []

        def perform(number: int, begin: Begin, say: Say) -> Performed:
            if not (guests and _lives(guests[-1])):  # also when it died of an earlier case
                guests.append(kept.enter_context(guest(lab, size, told, progress, stage)))
            return _case_in_guest(guests[-1], errand, number, begin, say, stage, told)

        yield perform


def _lives(found: Guest) -> bool:
    try:
        microvm.alive(found)
    except LabError:
        return False
    return True


def _case_in_guest(
    found: Guest, errand: Errand, number: int, begin: Begin, say: Say, stage: Path, told: Told
) -> Performed:
    made = asked(found, errand, f"{_RESULTS}/{number}", number)
    case = Case(begin, about(found), say)
    try:
        status = _heard(found, made, case)
    except LabError:
        if case.folder is not None:
            _keep_console(found, case.folder)
        raise
    finally:
        if case.folder is not None:
            taken = Taken(case.folder.path)
            try:
                collected.collect(stage / str(number), taken)
            finally:
                case.collected(taken, told)
                staging.discard(stage / str(number), _LEFT)
    return case.ended(status, found.name)


def _case_there(place: Target, errand: Errand, number: int, begin: Begin, say: Say, told: Told) -> Performed:
    made = asked(place, errand, request.RESULTS, number)
    case = Case(begin, {"machine": place.name}, say)
    broken: BaseException | None = None
    try:
        status = _heard(place, made, case)
    except BaseException as e:
        broken = e
        raise
    finally:
        if case.folder is not None:
            taken = Taken(case.folder.path)
            try:
                remote.fetch(place, made.token, taken)
            except LabError as e:
                results.discard(case.folder)
                if broken is None:
                    raise
                told(f"no results came: {e}")
            else:
                case.collected(taken, told)
    return case.ended(status, place.name)


def _heard(place: Place, made: Request, case: Case) -> int:
    """Run a request whose output is that of a case, and return its exit status."""
    source, out = os.pipe2(os.O_CLOEXEC)
    try:
        with relayed((2,)) as (err,):
            return _perform(place, made, (out, err), (source, case.hear))
    finally:
        os.close(out)
        while select.select([source], [], [], _REST)[0] and (part := os.read(source, 1 << 16)):
            case.hear(part)
        os.close(source)


def perform(place: Place, asked: Request) -> int:
    """Run the command line there with the files that it reads; return its exit status."""
    with relayed() as streams:
        return _perform(place, asked, streams)


def _perform(place: Place, asked: Request, streams: tuple[int, ...], hears: Hears | None = None) -> int:
    if isinstance(place, Target):
        return remote.ask(place, asked, streams, hears)
    body = request.encode(asked)
    stdin = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(stdin, body)
        os.lseek(stdin, 0, os.SEEK_SET)
        return _call(place, ("testbed", "serve-request"), (stdin, *streams), hears=hears)
    finally:
        os.close(stdin)


def _call(
    place: Guest,
    words: Sequence[str],
    streams: Sequence[int],
    env: Mapping[str, str] | None = None,
    tty: bool = False,
    hears: Hears | None = None,
) -> int:
    """Run a command in a guest; LabError when it fails and the guest's kernel had a fault meanwhile."""
    mark = os.fstat(place.console.fileno()).st_size
    status = command.call(place, words, streams=streams, env=env, tty=tty, hears=hears)
    faults = kernel_faults(console.since(place.console.fileno(), mark).decode(errors="replace")) if status else []
    if faults:
        raise LabError(f"guest {place.name}: its kernel says: {faults[-1]}")
    return status


def asked(place: Place, errand: Errand, results: str = "", case: int = -1) -> Request:
    """Return a request: the words of an errand, with the paths that its files have there."""
    there = _below({Path(os.path.abspath(path)): text for path, text in errand.files.items()})
    words = [there[Path(os.path.abspath(word))][0] if isinstance(word, Path) else word for word in errand.words]
    words += ["--results", results, "--case", str(case)] if results else []
    file = os.path.abspath(next(iter(errand.files))) if errand.files else ""
    under = list(there.values())[1][0] if len(errand.files) > 1 else ""
    env = Asker(file=file, under=under).variables()
    tied = isinstance(place, Target)
    # A guest has our own sources, of which an emulated processor need not compute the digest.
    version = sources.version() if tied else __version__
    token, texts = secrets.token_hex(8), dict(there.values())
    return Request(tuple(words), token, texts, env, signals=tied, keeps=bool(results), version=version)


def _below(files: dict[Path, str]) -> dict[Path, tuple[str, str]]:
    """Return (path below the folder that all are in, text) of each file."""
    top = Path(os.path.commonpath([file.parent for file in files])) if files else Path("/")
    return {file: (str(file.relative_to(top)), text) for file, text in files.items()}


@contextmanager
def guest(name: str, size: Size, told: Told, progress: Progress, stage: Path | None = None) -> Iterator[Guest]:
    """Yield a guest for one lab; it is gone afterwards unless it was kept."""
    from testbed.machines.guest import image

    if (made := image.find()) is None:
        with progress() as say:
            made = image.build(say)
    shares = {"code": Share(Path(__file__).parents[2], "/testbed", only=("testbed",))}
    if stage is not None:
        shares["results"] = Share(stage, _RESULTS, writable=True)
    try:
        found = microvm.start(made, size, name, shares, told=told)
    except LabError as e:
        # What was written before it came to the disk: nothing of the file's own has changed since.
        if damaged := made.damaged():
            raise LabError(f"{booted.damaged(made.digest, damaged)}\n{e}") from e
        raise
    try:
        yield found
    finally:
        if found.owner is not None and found.owner.fileno() >= 0:  # nobody has kept it
            microvm.stop(found)


def about(found: Guest) -> dict[str, object]:
    """Return what a manifest says of a guest."""
    from testbed.machines.guest import image

    made = image.find()
    return {
        "machine": "microvm",
        "accelerator": found.accel,
        "accelerator_why": found.why,
        "restored": found.restored,
        "image": {"digest": made.digest, "packages": made.manifest.get("packages", {})} if made else None,
    }


def _keep_console(found: Guest, folder: Folder) -> None:
    """Put the console of a guest that died into the results of its run."""
    with results.written(folder.path / "console.log"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(folder.path / "console.log", flags, 0o644), "wb") as file:
            file.write(console.text(found.console.fileno()))


def require_guest() -> None:
    """Raise Unsupported when no guest can be had here, as far as that is known without starting one."""
    from testbed.machines.guest import building, image

    booted.require_programs()
    if image.find() is None:
        trusted.folder(image.cache())
        building.require(image.cache())


def same_version(place: Target) -> str:
    """Return the version there; Unsupported when it is not ours, or when its sources are others."""
    version = remote.version(place)
    if version != __version__:
        raise Unsupported(
            f"machine {place.name}: it has testbed {version}, this is {__version__}: install the same version"
        )
    asks = Request(("--version",), secrets.token_hex(8), version=sources.version())
    with relayed((2,)) as (said,), open(os.devnull, "w") as null:
        status = remote.ask(place, asks, (null.fileno(), said))
    if status:
        raise Unsupported(f"machine {place.name}: it can't be used: status {status}; it said why above")
    return version
