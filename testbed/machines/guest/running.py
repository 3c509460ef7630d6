"""A guest whose QEMU runs: what was ordered, and the conversations with QEMU and with the guest's PID 1."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote

from msgspec import Raw, Struct, field
from msgspec.json import Decoder

from testbed.errors import LabError
from testbed.lab import furniture
from testbed.lab.asked import understood
from testbed.lab.messages import BROKEN, Line
from testbed.linux.kernel_log import kernel_faults
from testbed.machines.guest import asking
from testbed.machines.guest.asking import (
    GuestSaid,
    QemuSaid,
)
from testbed.machines.guest.console import Console
from testbed.machines.guest.qemu import Boot, Share, Size

FOLDER = Path(furniture.FOLDER)
_LOOK = 1.0  # s between two looks at the console of a guest that does not answer
_FAULT = b"testbed: fault: "  # what PID 1 says there when it can't go on; it waits then
LINE = 1 << 16  # bytes of a line of QEMU's or the guest's
S = TypeVar("S", QemuSaid, GuestSaid)


class Order(Struct, frozen=True):
    """What the keeper shall run: `files` are the descriptors that `boot` names, `save` is an empty folder."""

    name: str
    boot: Boot
    size: Size
    shares: Mapping[str, Share]
    files: tuple[int, ...] = ()
    user: int = 0  # whom QEMU is run as, 0: who runs this
    code: str = ""  # the digest of what the share `code` holds
    restore: Saved | None = None
    save: Path | None = None


class Saved(Struct, frozen=True):
    """The files of a saved guest, as descriptors."""

    ram: int
    state: int


class Talk(Struct, Generic[S], eq=False):
    """A conversation in lines: both sides of QEMU's and what a guest sends are JSON; a guest receives words.

    The guest is not trusted: lines that are too long or not understood are dropped.
    """

    connection: socket.socket
    decoder: Decoder[S]
    inbox: bytes = b""
    lines: list[S] = field(default_factory=list)
    skips: bool = False  # until the end of a line that is too long

    def say(self, message: Mapping[str, object], fds: tuple[int, ...] = ()) -> None:
        """Send one line, with file descriptors."""
        with suppress(BrokenPipeError, ConnectionResetError):  # QEMU ended: its pidfd tells
            socket.send_fds(self.connection, [json.dumps(message).encode() + b"\n"], fds)

    def tell(self, *words: object) -> None:
        """Send words as one line; a guest that does not read must not block us, and is found to hang (PATIENCE)."""
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            line = "\t".join(quote(str(word)) for word in words).encode() + b"\n"
            self.connection.sendall(line, socket.MSG_DONTWAIT)

    def hear(self) -> None:
        """Read what has arrived."""
        with suppress(ConnectionResetError):
            *lines, self.inbox = (self.inbox + self.connection.recv(LINE)).split(b"\n")
            if lines and self.skips:
                del lines[0]
                self.skips = False
            if len(self.inbox) > LINE:
                self.inbox, self.skips = b"", True
            for line in lines:
                with suppress(*BROKEN):
                    self.lines.append(self.decoder.decode(line))


class Keeper(Struct, eq=False):
    """A guest from the moment when its QEMU runs."""

    order: Order
    owner: Line | None
    qemu: int
    life: int  # QEMU's pidfd
    qmp: Talk[QemuSaid]
    agent: Talk[GuestSaid]
    console: Console
    said: Console  # by QEMU itself
    master: int = 0  # the ssh whose connection the others share
    port: int = 0
    kept: bool = False  # it outlives its owner
    calls: dict[Line, str] = field(default_factory=dict)  # by the connection of who called: a command in the guest
    began: float = field(default_factory=time.monotonic)
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a part of the start."""
        began = time.monotonic()
        yield
        self.phases[name] = time.monotonic() - began


def wait(keeper: Keeper, talk: Talk[S], wanted: Callable[[S], bool], seconds: float, what: str) -> S:
    """Return the first line that `wanted` accepts; lines before it are dropped."""
    look, deadline = time.monotonic() + _LOOK, time.monotonic() + seconds
    poll = select.poll()
    streams: dict[int, Console] = {s.source.fileno(): s for s in (keeper.console, keeper.said)}
    for fd in (talk.connection.fileno(), keeper.life, *streams):
        poll.register(fd, select.POLLIN)
    if keeper.owner is not None:
        poll.register(keeper.owner.connection, select.POLLRDHUP)
    while True:
        while talk.lines:
            if wanted(found := talk.lines.pop(0)):
                return found
        left = deadline - time.monotonic()
        ready = [fd for fd, _ in poll.poll(max(0, 1000 * min(left, _LOOK)))]
        for fd in streams.keys() & set(ready):
            if not streams[fd].hear():
                poll.unregister(fd)
        if talk.connection.fileno() in ready:
            talk.hear()
        if keeper.owner is not None and keeper.owner.connection.fileno() in ready:
            os._exit(0)  # nobody waits for this guest any more
        if keeper.life in ready and not talk.lines:
            raise LabError(cause(keeper, os.waitpid(keeper.qemu, 0)[1]))
        if time.monotonic() >= look and (look := time.monotonic() + _LOOK) and _FAULT in keeper.console.text():
            raise LabError(tail(keeper, f"it did not {what}"))  # its init can't go on
        if time.monotonic() > deadline:
            raise LabError(tail(keeper, f"it did not {what} within {seconds:g} s"))


def ask(keeper: Keeper, command: str, **arguments: object) -> Raw:
    """Give QEMU a command (docs/interop/qmp-spec) and return its answer."""
    keeper.qmp.say({"execute": command, "arguments": arguments, "id": command})
    answer = wait(keeper, keeper.qmp, lambda m: m.id == command, 20, f"answer QMP {command}")
    if answer.error is not None:
        raise LabError(f"guest {keeper.order.name}: QEMU refuses {command}: {answer.error.desc}")
    return answer.result


def status_of(keeper: Keeper, query: str) -> str:
    """Return the status in the answer to one of QEMU's queries, "" if there is none yet."""
    return understood(asking.STATUS, ask(keeper, query)).status


def tell(keeper: Keeper, verb: str, *words: object, seconds: float = 20) -> None:
    """Make the guest's PID 1 do something (provision/testbed-guest.c)."""
    keeper.agent.tell(verb, *words)
    answer = wait(keeper, keeper.agent, lambda m: m.done == verb, seconds, f"answer to {verb}")
    if answer.error is not None:
        raise LabError(f"guest {keeper.order.name}: {verb}: {answer.error}")


def mount(keeper: Keeper, slot: str) -> None:
    """Make the guest mount a shared folder."""
    share = keeper.order.shares[slot]
    tell(keeper, "mount", slot, share.at, int(share.writable))


def give(keeper: Keeper, fd: int) -> None:
    """Hand a file to QEMU, which knows it as `state`."""
    keeper.qmp.say({"execute": "getfd", "arguments": {"fdname": "state"}, "id": "getfd"}, (fd,))
    os.close(fd)
    wait(keeper, keeper.qmp, lambda m: m.id == "getfd", 20, "take a file")


def cause(keeper: Keeper, status: int) -> str:
    """Say how a guest ended, from the wait status of its QEMU."""
    code = os.waitstatus_to_exitcode(status)
    how = f"QEMU was killed by {signal.Signals(-code).name}" if code < 0 else f"QEMU ended with {code}"
    said = keeper.said.text().decode(errors="replace").strip()
    if panic := panicked(keeper.console.text()):
        how = panic
    elif code == 0:
        how = "it was powered off"
    return tail(keeper, how + (f": {said}" if said else ""))


def panicked(console: bytes) -> str:
    """Say that a guest's kernel panicked, and what to do if that is the emulator's fault; "" if it did not."""
    if b"Kernel panic" not in console:
        return ""
    if b"Oops: int3" not in console:
        return "its kernel panicked"
    # Such a page was not locked while TCG translated from it (accel/tcg/translate-all.c, tb_lock_page0, since 8.1).
    return (
        "its kernel panicked; QEMU before 8.1 can run code that the kernel of an emulated guest is just changing: "
        "install a newer QEMU (Debian 12 has one in bookworm-backports), or give the guest one processor (--cpus 1)"
    )


def last_rows(console: bytes, rows: int = 20) -> str:
    """Return the end of a console for a message, or the kernel's fault and the lines before it if there is one."""
    text = [r for r in console.decode(errors="replace").replace("\r", "").splitlines() if r.strip()]
    fault = next((n for n, row in enumerate(text) if kernel_faults([row])), len(text))
    end = text[max(0, fault - 5) :] if fault < len(text) else text
    end = [*end[: rows // 2], "...", *end[-rows // 2 :]] if len(end) > rows and fault < len(text) else end[-rows:]
    return "".join(f"\n    {row}" for row in end) or " it is empty"


def tail(keeper: Keeper, why: str) -> str:
    """Return a sentence about a guest with the end of its console."""
    return f"guest {keeper.order.name}: {why}; the end of its console:{last_rows(keeper.console.text())}"
