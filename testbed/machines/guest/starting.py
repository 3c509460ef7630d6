"""Start QEMU and make its guest ready, or save it."""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
import uuid
from contextlib import closing, nullcontext
from io import FileIO
from pathlib import Path

from testbed.errors import LabError
from testbed.lab.asked import understood
from testbed.lab.messages import Line
from testbed.machines.guest import asking, confined, lent, qemu, shared
from testbed.machines.guest.asking import (
    About,
    BrokenStateError,
    PanicError,
)
from testbed.machines.guest.console import opened
from testbed.machines.guest.qemu import Memory, Wires
from testbed.machines.guest.running import FOLDER, Keeper, Order, Talk, ask, give, mount, status_of, tail, tell, wait
from testbed.machines.guest.shell import connect, for_dropbear, spawn

_BOOT, _WARM, _RESTORE = 90.0, 180.0, 15.0  # s: an emulated processor on a machine that is busy with other things


_KEYS = ("host_key", "key")


def begin(order: Order, owner: socket.socket) -> Keeper:
    """Start a guest, or save one, and tell the owner."""
    keeper = _start(order, Line(owner))
    with keeper.phase("qemu"):
        keeper.qmp.say({"execute": "qmp_capabilities"})
        ask(keeper, "migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
    if order.save is not None:
        _save(keeper, order.save)
        asking.answer(Line(owner), keeper.phases)
        return keeper
    keys = [spawn("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(FOLDER / k)) for k in _KEYS]
    if order.restore is not None:
        with keeper.phase("restore"):
            _restore(keeper, order.restore.state)
    else:
        _boot(keeper)
    for key in keys:
        os.waitpid(key, 0)
    with keeper.phase("activate"):
        _activate(keeper)
    with keeper.phase("ssh"):
        connect(keeper)
    if order.restore is None:
        _warm(keeper)
    asking.answer(Line(owner), told(keeper))
    return keeper


def _start(order: Order, owner: Line) -> Keeper:
    pairs = [socket.socketpair() for _ in range(4)]
    (qmp, agent, heard, said), theirs = ([pair[end] for pair in pairs] for end in (0, 1))
    # QEMU, which is somebody else, goes through these folders whatever our umask is.
    os.umask(0o022)
    FOLDER.chmod(0o755)
    (FOLDER / "empty").mkdir()
    console = opened(heard, FOLDER / "console")
    wires = Wires(theirs[0].fileno(), theirs[1].fileno(), theirs[2].fileno(), str(FOLDER / "empty"))
    confined.admit(order.user)
    shares = {slot: shared.bound(share, FOLDER / "shares" / slot, order.user) for slot, share in order.shares.items()}
    memory, ram = None, order.restore.ram if order.restore is not None else -1
    if order.save is not None:
        ram = _room(order.save / "ram", order.size.memory << 20, order.user)
    if ram >= 0:
        memory = Memory(Path(f"/proc/self/fd/{ram}"), private=order.save is None)
    words = qemu.argv(order.boot, order.size, wires, shares, memory, incoming=order.restore is not None)
    fds = (*(end.fileno() for end in theirs[:3]), *order.files, *([ram] if order.save is not None else []))
    pid, asks = confined.start(words, order.user, fds, theirs[3].fileno(), lends=order.restore is not None)
    life = os.pidfd_open(pid)
    for end in theirs:
        end.close()
    for fd in order.files:
        os.close(fd)
    log = opened(said, FOLDER / "qemu.log", head=1 << 14, tail=1 << 14)
    keeper = Keeper(order, owner, pid, life, Talk(qmp, asking.QEMU), Talk(agent, asking.GUEST), console, log)
    if memory is not None and order.restore is not None:
        with closing(FileIO(asks)) if asks >= 0 else nullcontext():
            if asks < 0 or not lent.lend(asks, str(memory.file), ram, life, _RESTORE):
                raise BrokenStateError(tail(keeper, "QEMU does not take the memory of the saved guest"))
    return keeper


def _room(file: Path, size: int, user: int) -> int:
    """Create the file of a memory that will be saved; it belongs to QEMU's user until then."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, size)
    if user:
        os.fchown(fd, user, user)
    return fd


def _restore(keeper: Keeper, state: int) -> None:
    """Load the devices; the memory is there already, as a private mapping of the saved file."""
    try:
        give(keeper, state)
        ask(keeper, "migrate-incoming", uri="fd:state")
        while status_of(keeper, "query-status") == "inmigrate":
            time.sleep(0.002)
        ask(keeper, "cont")
        # A guest whose saved memory is damaged would not answer.
        tell(keeper, "ping", seconds=_RESTORE)
    except (LabError, OSError) as e:
        raise BrokenStateError(f"{e}") from e


def _boot(keeper: Keeper) -> None:
    try:
        with keeper.phase("boot"):
            wait(keeper, keeper.agent, lambda m: m.event == "hello", _BOOT, "boot")
    except LabError as e:
        if b"Kernel panic" in keeper.console.text():
            raise PanicError(f"{e}") from e
        raise


def _save(keeper: Keeper, folder: Path) -> None:
    """Boot, import testbed and save; the guest has no identity of its own yet."""
    _boot(keeper)
    with keeper.phase("warm"):
        tell(keeper, "settle", seconds=_BOOT)
        if code := keeper.order.shares.get("code"):
            mount(keeper, "code")
            _warm(keeper)
            wait(keeper, keeper.agent, lambda m: m.event == "warm", _WARM, "import testbed")
            tell(keeper, "unmount", code.at)  # a mounted share can't be saved
    with keeper.phase("save"):
        ask(keeper, "stop")
        give(keeper, os.open(folder / "state", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        ask(keeper, "migrate", uri="fd:state")
        while (status := status_of(keeper, "query-migrate")) != "completed":
            if status in ("failed", "cancelled"):
                raise LabError(f"guest {keeper.order.name}: QEMU could not save it (see `query-migrate`: {status})")
            time.sleep(0.002)
        ask(keeper, "quit")
        os.waitpid(keeper.qemu, 0)
        os.chown(folder / "ram", os.geteuid(), os.getegid())  # nobody but us writes to it from here on


def _warm(keeper: Keeper) -> None:
    if code := keeper.order.shares.get("code"):
        keeper.agent.tell("warm", keeper.order.code, code.at)


def _activate(keeper: Keeper) -> None:
    public = (FOLDER / "host_key.pub").read_text()
    private = for_dropbear((FOLDER / "host_key").read_text()).hex()
    seed, machine_id, user = secrets.token_hex(64), uuid.uuid4().hex, (FOLDER / "key.pub").read_text()
    tell(keeper, "activate", time.time(), seed, machine_id, keeper.order.name, private, user, seconds=60)
    for slot in keeper.order.shares:
        mount(keeper, slot)
    (FOLDER / "known_hosts").write_text(f"testbed {public}")
    said = understood(asking.TEXT, ask(keeper, "human-monitor-command", **{"command-line": "info usernet"}))
    found = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", said)
    if found is None:
        raise LabError(f"guest {keeper.order.name}: QEMU tells no forwarded port: {said}")
    keeper.port = int(found[1])


def told(keeper: Keeper) -> About:
    """Return what is reported about a guest."""
    order = keeper.order
    return About(
        name=order.name,
        size=order.size,
        accel=order.boot.accel,
        port=keeper.port,
        shared=keeper.master != 0,
        restored=order.restore is not None,
        phases=keeper.phases,
        shares=asking.rows(order.shares),
        qemu=keeper.qemu,
    )
