"""One end of a transfer (workloads/transfer.py); the other end is another of these, and nothing but data joins them.

It writes OUT.progress.jsonl, a line each 50 ms with what passed, OUT.sockets.jsonl, a line each interval with what the
kernel says of its sockets, and at its end OUT.json. Times are those of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct, field

from testbed.programs.transfer import flow as flows
from testbed.programs.transfer import sockets
from testbed.programs.transfer.asked import Asked, read
from testbed.programs.transfer.flow import Flow

_EVERY = 0.05  # seconds of a line of progress
_SHARE = 20  # looks at sockets take at most one second in so many
_LONGEST = 3600.0  # seconds of one wait
_PACE = 0.005  # seconds between two looks at what a rate allows
_NEVER = 1e9  # seconds: later than anything


class End(Struct):
    """This end: its connections by descriptor, what has passed since the last line, and when things are due."""

    asked: Asked
    poll: select.epoll
    progress: BinaryIO
    looks: BinaryIO
    listener: socket.socket | None = None
    flows: dict[int, Flow] = field(default_factory=dict)
    every: list[Flow] = field(default_factory=list)
    writing: set[int] = field(default_factory=set)  # descriptors whose space is awaited
    began: float = 0.0  # when its first connection was there
    since: float = 0.0
    sent: int = 0
    got: int = 0
    whole: int = 0  # bytes sent since `began`
    last: float = 0.0  # when bytes came
    gap: tuple[float, float] = (0.0, 0.0)  # the longest time without, which ended in this line, and its begin
    look: float = _NEVER
    ended: bool = False  # its time to send is over


def main(words: Sequence[str]) -> None:
    """Transfer what the words KEY=VALUE ask for (asked.py), until both ends have all or never will."""
    asked = read(words)
    ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with (
        select.epoll() as poll,
        Path(f"{asked.out}.progress.jsonl").open("ab", buffering=0) as progress,
        Path(f"{asked.out}.sockets.jsonl").open("ab", buffering=0) as looks,
    ):
        poll.register(ended, select.EPOLLIN)
        it = End(asked, poll, progress, looks, since=time.monotonic())
        error = ""
        try:
            _open(it)
        except sockets.UnsupportedError as e:
            outcome, error = "unsupported", str(e)
        except OSError as e:
            outcome, error = sockets.outcome(e.errno), sockets.sentence(e)
        else:
            outcome = _loop(it, ended)
        if it.began:
            _line(it, time.monotonic())
    told = [_told(f) for f in it.every]
    worst = next((f for f in it.every if f.outcome != "completed"), None)
    if worst is not None and outcome == "completed":
        bad = sum(f.outcome != "completed" for f in it.every)
        outcome, error = worst.outcome, worst.error
        error = f"{error}, of {bad} of {asked.connections} connections" if asked.connections > 1 else error
    final = {"began": it.began, "ended": time.monotonic(), "outcome": outcome, "error": error, "connections": told}
    Path(f"{asked.out}.json").write_bytes(msgspec.json.encode(final) + b"\n")


def _open(it: End) -> None:
    """Begin to connect, or to listen."""
    if not it.asked.connect:
        it.listener = sockets.listening(it.asked)
        it.poll.register(it.listener, select.EPOLLIN)
        return
    for n in range(it.asked.connections):
        _add(it, Flow(n, sockets.connecting(it.asked, n), it.asked), select.EPOLLOUT)


def _add(it: End, flow: Flow, events: int) -> None:
    it.flows[flow.sock.fileno()] = flow
    it.every.append(flow)
    it.poll.register(flow.sock, events)
    if events & select.EPOLLOUT:
        it.writing.add(flow.sock.fileno())


def _loop(it: End, ended: int) -> str:
    """Go on until all connections have ended; return `completed`, or why it ended before."""
    asked = it.asked
    first = time.monotonic()
    while it.flows or (it.listener is not None and len(it.every) < asked.connections):
        now = time.monotonic()
        over = it.began + asked.seconds if it.began else _NEVER if it.listener is not None else first + asked.seconds
        dead = over if asked.bytes and it.began else over + asked.patience
        if now >= dead:
            _give_up(it, "unfinished", now)
            return "completed" if it.every else "nobody"
        if now >= over and not it.ended:
            it.ended = True
            for flow in it.flows.values():
                if flow.connected and asked.every:
                    flows.ask(flow, over)  # what was due before is asked, however late this process runs
                flows.finish(flow)
        due = min(it.since + _EVERY if it.began else _NEVER, it.look, dead, over if not it.ended else _NEVER)
        for fd, events in it.poll.poll(max(0.0, min(due, _paced(it, now), now + _LONGEST) - now)):
            if fd == ended:
                _give_up(it, "stopped", time.monotonic())
                return "completed" if it.every else "nobody"
            if it.listener is not None and fd == it.listener.fileno():
                _accept(it)
            elif (ready := it.flows.get(fd)) is not None:
                _serve(it, ready, events)
        now = time.monotonic()
        if asked.request or asked.rate or it.ended:
            for fd, flow in list(it.flows.items()):
                if flow.connected:
                    flows.ask(flow, now)
                    _write(it, fd, flow, now)
        if it.began and now >= it.since + _EVERY:
            _line(it, now)
        if now >= it.look:
            _look(it, now)
    return "completed"


def _paced(it: End, now: float) -> float:
    """Return when something can be sent again without an event: as a rate allows, or when a request is due."""
    asked = it.asked
    if not it.began or it.ended:
        return _NEVER
    if asked.request and asked.connect and asked.every:
        nexts = [f.connected + f.messages * asked.every for f in it.flows.values() if f.connected and f.more]
        return min(nexts, default=_NEVER)
    return now + _PACE if asked.rate and asked.sends else _NEVER


def _accept(it: End) -> None:
    assert it.listener is not None
    with suppress(OSError):  # a client that has gone again
        while len(it.every) < it.asked.connections:
            sock = it.listener.accept()[0]
            sock.setblocking(False)
            flow = Flow(len(it.every), sock, it.asked)
            _add(it, flow, select.EPOLLIN)
            _begin(it, flow)
    if len(it.every) == it.asked.connections:
        it.poll.unregister(it.listener)  # it stays open: joins of MPTCP need a socket that listens on their port


def _begin(it: End, flow: Flow) -> None:
    now = time.monotonic()
    if not it.began:
        it.began = it.since = it.last = now
        it.look = now
    flows.begin(flow, now)
    flows.ask(flow, now)
    _write(it, flow.sock.fileno(), flow, now)


def _serve(it: End, flow: Flow, events: int) -> None:
    """Do what a connection can do now."""
    fd = flow.sock.fileno()
    if not flow.connected:
        if number := flow.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            flows.fail(flow, OSError(number, ""), time.monotonic())
            _drop(it, fd)
        else:
            _begin(it, flow)
        return
    now = time.monotonic()
    if events & ~select.EPOLLOUT and flow.hearing and (got := flows.receive(flow, now)):
        if now - it.last > it.gap[0]:
            it.gap = now - it.last, it.last
        it.got, it.last = it.got + got, now
        if flow.asked.request:
            flows.ask(flow, now)
    _write(it, fd, flow, now)


def _write(it: End, fd: int, flow: Flow, now: float) -> None:
    """Send what may be sent, and wait for space if there is more."""
    allowed = flows.BLOCK
    if rate := it.asked.rate:
        allowed = max(0, int(rate * (now - it.began)) - it.whole)
    if flow.left and flow.live:
        taken = flows.send(flow, allowed, now)
        it.sent, it.whole = it.sent + taken, it.whole + taken
    flows.settle(flow, now)
    if not flow.live:
        _drop(it, fd)
        return
    # What a rate holds back is tried again at its time, and not whenever there is space.
    wants = bool(flow.left) and not (it.asked.rate and not allowed)
    if wants != (fd in it.writing) or not flow.hearing:
        events = (select.EPOLLIN if flow.hearing else 0) | (select.EPOLLOUT if wants else 0)
        it.poll.modify(fd, events)
        (it.writing.add if wants else it.writing.discard)(fd)


def _drop(it: End, fd: int) -> None:
    """Forget a connection that has ended; the kernel has taken its descriptor out of the set with close(2)."""
    it.flows.pop(fd, None)
    it.writing.discard(fd)


def _give_up(it: End, outcome: str, now: float) -> None:
    """End what has not ended."""
    over = "it was told to end" if outcome == "stopped" else "its time was over"
    for flow in list(it.flows.values()):
        if not flow.connected:
            name, why = "unanswered" if outcome == "unfinished" else outcome, "nobody answered"
        elif it.asked.sends and not it.asked.receives:
            name, why = outcome, f"its peer did not say that it has all of {flow.sent} bytes"
        elif flow.come:
            name, why = outcome, f"the last of {flow.got} bytes came {flow.come - flow.connected:.1f} s after its begin"
        else:
            name, why = outcome, "no data came"
        flows.end(flow, name, f"{why}, and {over}", now)
    it.flows.clear()


def _line(it: End, now: float) -> None:
    """Write what has passed since the last line."""
    row: dict[str, Any] = {"t": now, "since": it.since, "sent": it.sent, "got": it.got}
    if it.gap[0]:
        row["gap"] = it.gap
    if answers := [a for f in it.every for a in f.latencies]:
        row["answers"] = [(round(s * 1e3, 3)) for _, s in sorted(answers)]
        for flow in it.every:
            flow.latencies.clear()
    it.progress.write(msgspec.json.encode(row) + b"\n")
    it.since, it.sent, it.got, it.gap = now, 0, 0, (0.0, 0.0)


def _look(it: End, now: float) -> None:
    """Write what the kernel says of the sockets, and plan the next look."""
    rows = [flows.look(f, now) for f in it.flows.values() if f.connected]
    it.looks.write(msgspec.json.encode({"t": now, "connections": rows}) + b"\n")
    it.look = now + max(it.asked.interval, _SHARE * (time.monotonic() - now))


def _told(flow: Flow) -> dict[str, Any]:
    """Return what the last file says of a connection."""
    return flow.last | {
        "n": flow.n,
        "sent": flow.sent,
        "got": flow.got,
        "connected": flow.connected,
        "gone": flow.gone,
        "come": flow.come,
        "ended": flow.ended,
        "was_mptcp": flow.mptcp,
        "fallen": flow.fallen,
        "messages": flow.messages,
        "outcome": flow.outcome,
        "error": flow.error,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
