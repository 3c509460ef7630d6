"""Guests: QEMU runs the image's kernel, restored from a saved guest if one fits, and ssh reaches it.

A guest is a sandbox of its own with a keeper as PID 1; its name is an abstract socket, like that of a lab.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from msgspec import Raw, Struct
from msgspec.structs import replace

from testbed.errors import LabError
from testbed.lab import ending, furniture, reach, sandbox
from testbed.lab.asked import Asked, Keep, Status
from testbed.lab.reach import GUESTS, SilentError
from testbed.linux import calls as linux
from testbed.machines import trusted
from testbed.machines.guest import asking, confined, console, keeper, kvm, lent, qemu, saved
from testbed.machines.guest.asking import About, BrokenStateError, PanicError, Stop
from testbed.machines.guest.booted import (
    Image,
    booted,
    files,
    processor,
    qemu_version,
    require_programs,
    sources,
)
from testbed.machines.guest.qemu import Boot, Share, Size
from testbed.machines.guest.running import Order, Saved, last_rows, panicked
from testbed.machines.guest.shell import ssh

# QEMU forwards a port of this host's loopback, so the guest keeps this network namespace.
_SPACES = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWUTS


class Guest(Struct, frozen=True):
    """A guest that is ready."""

    name: str
    ssh: tuple[str, ...]  # words before a command
    size: Size
    accel: str  # kvm or tcg
    why: str  # the reason for this accelerator
    restored: bool
    phases: Mapping[str, float]  # the seconds that each part of its start took
    shares: Mapping[str, Share]
    holder: int  # the keeper's process id
    life: FileIO  # its pidfd
    console: FileIO  # readable even when the guest is gone
    owner: socket.socket | None = None  # it lives with this connection until it is kept


Told = Callable[[str], None]
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
    """Start a guest, restored from a saved one, which is made if there is none; it ends with this process until kept.

    `restore=False` boots it. `told` gets a sentence whenever something takes long or differs from what was asked for.
    """
    _check(shares)
    version = qemu_version()
    boot, why = booted(image, accel or "tcg"), "asked for"
    opened = files(image, boot)
    try:
        if accel is None:
            works, why = kvm.works(boot, version, image.folder / "kvm.json")
            boot = replace(boot, accel="kvm" if works else "tcg")
            if not works:
                told(f"KVM is not used: {why}; the guest's processor is emulated, about ten times slower")
        code = sources(shares["code"]) if "code" in shares else ""
        kernel, initrd, root = (Path(f"/proc/self/fd/{fd}") for fd in opened)
        held = Boot(kernel, initrd, root, boot.accel)
        order = Order(name, held, size, shares, opened, confined.user(), code)
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
        for fd in opened:
            os.close(fd)


def _patiently(boot: Callable[[], T], told: Told) -> T:
    """Boot, and once more if the kernel panics: an emulated one may trip over code that it patches (Oops: int3)."""
    try:
        return boot()
    except PanicError as e:
        told(f"{str(e).partition(';')[0]} while it was booted; it is booted once more")
    return boot()  # here: what is forked must not be in the midst of an exception


def _saved(image: Image, order: Order, version: str, told: Told) -> Path | None:
    digest = qemu.digest(order.boot, order.size, image.digest, version, processor())
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
    """Start a guest from a saved one; BrokenStateError if that has changed since it was saved."""
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
        ssh=ssh(folder, told.port),
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
    """Return the names of this user's guests that are up or starting."""
    return reach.names(GUESTS)


def find(name: str) -> Guest:
    """Return a guest that is up."""
    with connect(name) as connection:
        _, life = reach.holder(name, connection)
        return _guest(asking.told(_asked(name, connection, Status())), life, "", None)


def keep(guest: Guest) -> None:
    """Let a guest outlive this process."""
    with connect(guest.name) as connection:
        _asked(guest.name, connection, Keep())
    if guest.owner is not None:
        guest.owner.close()


def stop(guest: Guest) -> None:
    """Stop a guest and everything in it; return when nothing is left."""
    with suppress(LabError, BrokenPipeError), connect(guest.name) as connection:
        asking.ask(connection, Stop())
    ending.await_end(guest.name, guest.life, 10)
    if guest.owner is not None:
        guest.owner.close()


def alive(guest: Guest) -> About:
    """Return what a guest's keeper reports; LabError with the end of the console if the guest is gone."""
    try:
        connection = connect(guest.name)
    except LabError as e:
        raise LabError(gone(guest)) from e
    with connection:
        try:
            connection.settimeout(10)
            asking.ask(connection, Status())
            return asking.told(asking.heard(connection))
        except (EOFError, OSError) as e:
            raise LabError(gone(guest)) from e


def gone(guest: Guest) -> str:
    """Say that a guest is gone, with the end of its console."""
    text = console.text(guest.console.fileno())
    how = panicked(text) or f"it was ended, or its keeper, process {guest.holder}, was killed"
    return f"guest {guest.name}: {how}; the end of its console:{last_rows(text)}"


def connect(name: str) -> socket.socket:
    """Connect to the keeper of a guest."""
    return reach.call(name, GUESTS)


def _asked(name: str, connection: socket.socket, question: Asked) -> Raw:
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
