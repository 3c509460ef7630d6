"""One connection of a transfer: what it has still to send and to get, and how it ended."""

from __future__ import annotations

import errno
import socket
from collections import deque
from contextlib import suppress
from typing import Any

from msgspec import Struct, field

from testbed.linux import mptcp_info, tcp_info
from testbed.programs.transfer import sockets
from testbed.programs.transfer.asked import Asked

BLOCK = 1 << 18  # bytes that are sent or received at once
_ENDLESS = 1 << 62  # bytes of what is sent for a time
_SENT, _SPACE = memoryview(bytes(BLOCK)), memoryview(bytearray(BLOCK))


class Flow(Struct):
    """A connection, with `left` bytes to send now, and perhaps `more` later; `due` has when open requests were due.

    `gone` and `come` are when its first byte left and when its last one came (CLOCK_MONOTONIC, seconds).
    """

    n: int
    sock: socket.socket
    asked: Asked
    left: int = 0
    more: bool = False
    sent: int = 0
    got: int = 0
    connected: float = 0.0
    sending: bool = True  # this end has not said that it has sent all
    hearing: bool = True  # the other end has not
    due: deque[float] = field(default_factory=deque)
    latencies: list[tuple[float, float]] = field(default_factory=list)  # (when an answer was complete, seconds)
    messages: int = 0  # that were asked, or answered
    gone: float = 0.0
    come: float = 0.0
    mptcp: bool = False  # at the first look
    fallen: float | None = None  # when it was first seen not to be MPTCP any more
    last: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""
    error: str = ""
    ended: float = 0.0

    @property
    def live(self) -> bool:
        """Whether it goes on."""
        return not self.outcome


def begin(flow: Flow, now: float) -> None:
    """Begin what a connection is for, as soon as it is there."""
    asked = flow.asked
    flow.connected = now
    if asked.request:
        flow.more = bool(asked.connect)
    elif asked.sends:
        flow.left = asked.share(flow.n) if asked.bytes else _ENDLESS
    look(flow, now)


def finish(flow: Flow) -> None:
    """Send nothing more: the time is over."""
    flow.more = False
    if not flow.asked.request and not flow.asked.bytes:
        flow.left = 0


def ask(flow: Flow, now: float) -> None:
    """Begin the requests that are due."""
    asked = flow.asked
    if not flow.more or not asked.connect:
        return
    if not asked.every:
        due = [now] if not flow.due else []
    else:
        number = int((now - flow.connected) / asked.every) + 1 - flow.messages
        due = [flow.connected + (flow.messages + k) * asked.every for k in range(number)]
    flow.messages += len(due)
    flow.due.extend(due)
    flow.left += asked.request * len(due)


def send(flow: Flow, allowed: int, now: float) -> int:
    """Send what there is to send, of at most `allowed` bytes; return how many the kernel took."""
    if not (size := min(flow.left, allowed, BLOCK)):
        return 0
    try:
        taken = flow.sock.send(_SENT[:size])
    except BlockingIOError:
        return 0
    except OSError as e:
        fail(flow, e, now)
        return 0
    flow.gone = flow.gone or now
    flow.left, flow.sent = flow.left - taken, flow.sent + taken
    return taken


def receive(flow: Flow, now: float) -> int:
    """Receive what has come; return how many bytes."""
    try:
        got = flow.sock.recv_into(_SPACE)
    except BlockingIOError:
        return 0
    except OSError as e:
        fail(flow, e, now)
        return 0
    if not got:
        flow.hearing = False
        if flow.sending and not flow.asked.receives and flow.asked.sends and flow.left:
            end(flow, "incomplete", "its peer closed the connection before everything was sent", now)
        return 0
    flow.come, flow.got = now, flow.got + got
    _answered(flow, now)
    return got


def _answered(flow: Flow, now: float) -> None:
    """Count whole messages: a client's answers, and what a server is to answer."""
    asked = flow.asked
    if not asked.request:
        return
    if asked.connect:
        while flow.due and flow.got >= (flow.messages - len(flow.due) + 1) * asked.response:
            flow.latencies.append((now, now - flow.due.popleft()))
        return
    whole = flow.got // asked.request
    flow.left += (whole - flow.messages) * asked.response
    flow.messages = whole


def settle(flow: Flow, now: float) -> None:
    """Say that all is sent when it is, and end the connection when both ends have."""
    asked = flow.asked
    if not flow.live:
        return
    leads = asked.sends or (asked.request and asked.connect)
    if not flow.hearing and flow.due:
        end(flow, "incomplete", f"its peer closed the connection before it answered {len(flow.due)} requests", now)
        return
    if flow.sending and not (flow.left or flow.more or flow.due) and (leads or not flow.hearing):
        look(flow, now)
        flow.sending = False
        if asked.linger >= 0 and asked.connect and not asked.receives:
            flow.hearing = False  # close(2) says it, in its own way
        else:
            with suppress(OSError):
                flow.sock.shutdown(socket.SHUT_WR)
    if flow.sending or flow.hearing:
        return
    # A peer that was killed closes too, perhaps only now: then our kernel still has what that one never took.
    only = asked.sends and not asked.receives and asked.linger < 0
    if only and (kept := sockets.unacknowledged(flow.sock)) > 1:  # a FIN takes one
        end(flow, "incomplete", f"its peer closed the connection without {kept} of {flow.sent} bytes", now)
    elif asked.receives and asked.bytes and flow.got < asked.share(flow.n):
        end(flow, "incomplete", f"its peer closed the connection after {flow.got} of {asked.share(flow.n)} bytes", now)
    else:
        end(flow, "completed", "", now)


def fail(flow: Flow, error: OSError, now: float) -> None:
    """End a connection by an error of the kernel; a peer that was told to reset it has done what it should."""
    asked = flow.asked
    expected = asked.linger == 0 and not asked.connect and error.errno == errno.ECONNRESET
    name = "completed" if expected else sockets.outcome(error.errno)
    end(flow, name, "" if expected else sockets.sentence(error), now)


def end(flow: Flow, outcome: str, error: str, now: float) -> None:
    """End a connection, with what it comes to."""
    if flow.connected:
        look(flow, now)
    flow.outcome, flow.error, flow.ended = outcome, error, now
    flow.sock.close()


def look(flow: Flow, now: float) -> dict[str, Any]:
    """Ask the kernel about the connection; return and keep what it says."""
    asked = flow.asked
    row: dict[str, Any] = {"n": flow.n, "sent": flow.sent, "got": flow.got, "mptcp": False}
    if asked.mptcp and (found := mptcp_info.connection(flow.sock)) is not None:
        row |= {"mptcp": mptcp_info.is_mptcp(flow.sock), "state": found}
    else:
        with suppress(OSError):
            info = flow.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, tcp_info.SIZE)
            row["tcp"] = tcp_info.figures(info)
    if not flow.last:
        flow.mptcp = row["mptcp"]
        row["local"], row["remote"] = _ends(flow.sock)
    elif flow.mptcp and not row["mptcp"] and flow.fallen is None:
        flow.fallen = now
    flow.last |= row
    return row


def _ends(sock: socket.socket) -> tuple[list[Any], list[Any]]:
    with suppress(OSError):
        return list(sock.getsockname()[:2]), list(sock.getpeername()[:2])
    return [], []
