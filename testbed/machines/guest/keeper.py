"""PID 1 of a guest's sandbox: it starts QEMU, gives the guest its identity and watches it; QEMU ends with it.

QEMU, the keys, the console and the connection that ssh commands share are in the keeper's namespaces: whatever kills
it or QEMU, the kernel removes the rest.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from testbed.errors import LabError
from testbed.lab import sources
from testbed.lab.answers import Dead, NotUnderstoodError
from testbed.lab.asked import Keep, Status
from testbed.lab.listening import Listening
from testbed.lab.messages import Line, close
from testbed.machines.guest import asking, shared
from testbed.machines.guest.asking import (
    LONGEST,
    Call,
    Ended,
    Signal,
    Stop,
)
from testbed.machines.guest.running import FOLDER, LINE, Keeper, Order, cause, tail
from testbed.machines.guest.starting import begin, told

PATIENCE = 8  # s without a sign of life, after which a guest hangs


def serve(order: Order) -> Callable[[socket.socket, socket.socket], None]:
    """Return the body of a sandbox that runs a guest; it tells the owner when the guest is ready, or why it is not."""

    def body(listener: socket.socket, owner: socket.socket) -> None:
        try:
            keeper = begin(order, owner)
        except (LabError, OSError) as e:
            asking.answer(Line(owner), e if isinstance(e, LabError) else LabError(f"guest {order.name}: {e}"))
            return
        if order.save is None:
            _watch(keeper, listener)

    return body


def _watch(keeper: Keeper, listener: socket.socket) -> None:
    """Serve the command line until the guest ends, is stopped, or gives no sign of life."""
    with selectors.DefaultSelector() as selector:
        listening = Listening(selector, listener, LONGEST, lambda line: line in keeper.calls or bool(line.outbox))
        streams = {stream.source: stream for stream in (keeper.console, keeper.said)}
        selector.register(keeper.life, selectors.EVENT_READ)
        for source in (keeper.agent.connection, keeper.qmp.connection, *streams):
            selector.register(source, selectors.EVENT_READ)
        if keeper.owner is not None:
            selector.register(keeper.owner.connection, selectors.EVENT_READ)
        missed, tick = 0, time.monotonic()
        while True:
            listening.settle()
            ready = {key.fileobj: key for key, _ in selector.select(max(0, tick + 1 - time.monotonic()))}
            now = time.monotonic()
            for source in streams.keys() & ready.keys():
                if not streams[source].hear():
                    selector.unregister(source)
            if keeper.agent.connection in ready:
                keeper.agent.hear()
                keeper.agent.lines.clear()
                missed = 0
            if now >= tick + 1:
                # Seconds in which this process did not run itself are not counted: the host may be stopped or
                # overloaded.
                missed, tick = missed + 1, now
                keeper.agent.tell("ping")
            if keeper.qmp.connection in ready:
                keeper.qmp.hear()
                keeper.qmp.lines.clear()
            if keeper.owner is not None and keeper.owner.connection in ready and _hung_up(keeper.owner):
                if not keeper.kept:
                    return
                selector.unregister(keeper.owner.connection)
                keeper.owner = None
            if death := _ended(keeper, missed):
                for line in (*listening.lines, *([keeper.owner] if keeper.owner else [])):
                    with suppress(OSError):
                        asking.answer(line, Dead(death))
                return
            if listener in ready:
                _, gone = listening.accept()
                if gone is not None:
                    _hang_up(keeper, listening, gone)
            for line in [key.data for key in ready.values() if key.data in listening.lines]:
                if not _serve(keeper, listening, line):
                    _hang_up(keeper, listening, line)


def _hung_up(owner: Line) -> bool:
    """Return whether the owner is gone; it sends nothing before that."""
    try:
        return not owner.connection.recv(LINE, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _hang_up(keeper: Keeper, listening: Listening, line: Line) -> None:
    listening.drop(line)
    if left := keeper.calls.pop(line, None):
        keeper.agent.tell("hangup", left)


def _serve(keeper: Keeper, listening: Listening, line: Line) -> bool:
    """Answer one request; return False if its sender is gone or was not understood."""
    try:
        line.flush()
        if line.outbox or (found := line.receive()) is None:
            return True
        close(found[1])
        listening.heard(line)
        question = asking.decode(found[0])
        match question:
            case Call(name):
                keeper.calls[line] = name
            case Ended():
                keeper.calls.pop(line, None)
            case Signal(name, number):
                keeper.agent.tell("signal", name, number)
            case Keep():
                keeper.kept = True
            case Stop():
                os._exit(0)
            case Status():
                pass
        asking.answer(line, told(keeper))
    except (EOFError, ConnectionError):
        return False
    except NotUnderstoodError as e:
        made = sources.started(round(time.time() - (time.monotonic() - keeper.began)))
        with suppress(OSError):
            asking.answer(line, NotUnderstoodError(f"guest {keeper.order.name}: {e}; its testbed is {made}"))
        return False
    except LabError as e:
        with suppress(OSError):
            asking.answer(line, e)
        return False
    return True


def _ended(keeper: Keeper, missed: int) -> str:
    """Reap children; return how the guest ended, "" if it runs."""
    death = ""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        if pid == keeper.qemu:
            death = cause(keeper, status)
        elif pid == keeper.master:
            keeper.master = 0  # ssh commands have connections of their own from here on
    written = [FOLDER / "shares" / slot for slot, share in keeper.order.shares.items() if share.writable]
    if not death and any(map(shared.is_full, written)):
        death = tail(keeper, f"it fills the disk with its results ({shared.RESERVE >> 20} MiB are left): it was ended")
    if not death and missed > PATIENCE:
        death = tail(keeper, f"it hangs: no sign of life for {PATIENCE} s, so it was ended")
    return death
