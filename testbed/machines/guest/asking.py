"""Messages to and from a guest's keeper, and those of QEMU and the guest to it; all are decoded by type."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

from msgspec import Meta, Raw, Struct, field
from msgspec.json import Decoder

from testbed.errors import LabError, TestbedError
from testbed.lab import answers, messages, sources
from testbed.lab.answers import Dead, Done, Failed, NotUnderstoodError
from testbed.lab.asked import Asked, Keep, Status, encode, understood
from testbed.lab.messages import BROKEN, Line
from testbed.machines.guest.qemu import Share, Size

LONGEST = 1 << 16  # bytes of a request
_ANSWER = 1 << 20  # bytes of an answer: it may have the end of a console
_Name = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]


class BrokenStateError(LabError):
    """A saved guest could not be restored; a cold boot may succeed."""


class PanicError(LabError):
    """A guest's kernel panicked before its init ran; another boot may succeed."""


ERRORS = {**answers.ERRORS, "BrokenStateError": BrokenStateError, "PanicError": PanicError}


class Stop(Asked, frozen=True):
    """End the guest."""


class Call(Asked, frozen=True):
    """This connection belongs to a command in the guest: if it closes, the command gets a hangup."""

    name: _Name


class Ended(Asked, frozen=True):
    """The command of this connection has ended."""


class Signal(Asked, frozen=True):
    """Send a signal to a command."""

    name: _Name
    number: Annotated[int, Meta(ge=1, le=64)]


class ShareRow(Struct, frozen=True):
    """A folder that is shared with the guest; a path may be bytes that are not valid text."""

    folder: bytes
    at: str
    writable: bool


class About(Struct, frozen=True):
    """What a keeper reports about its guest."""

    name: str
    size: Size
    accel: str
    port: int
    shared: bool  # the connection that ssh commands share stands
    restored: bool
    phases: dict[str, float]
    shares: dict[str, ShareRow]
    qemu: int

    def folders(self) -> dict[str, Share]:
        """Return the shared folders."""
        return {
            n: Share(Path(str(s.folder, errors="surrogateescape")), s.at, s.writable) for n, s in self.shares.items()
        }


def rows(shares: Mapping[str, Share]) -> dict[str, ShareRow]:
    """Return shared folders in the form in which they are sent."""
    return {n: ShareRow(bytes(s.folder), s.at, s.writable) for n, s in shares.items()}


Question: TypeAlias = Status | Keep | Stop | Call | Ended | Signal

_QUESTION: Decoder[Question] = Decoder(Question)
_TOLD = Decoder(About)


def ask(connection: socket.socket, question: Asked) -> None:
    """Send a request."""
    messages.send(connection, encode(question))


def decode(data: bytes) -> Question:
    """Decode a request; raise NotUnderstoodError if it is not a valid one."""
    try:
        return _QUESTION.decode(data)
    except BROKEN as e:
        raise NotUnderstoodError(f"a request is not valid: {e}") from e


def answer(line: Line, value: object) -> None:
    """Answer a request, or report an error or the end of the guest."""
    if isinstance(value, TestbedError):
        value = answers.failed(value, ERRORS)
    line.send(answers.encode(value if isinstance(value, Dead | Failed) else answers.done(value)))


def heard(connection: socket.socket) -> Raw:
    """Return the value of the next answer; raise it if it is an error, and LabError if the guest is dead.

    EOFError when the keeper is gone.
    """
    came = answers.decode(messages.receive(connection, _ANSWER)[0])
    match came:
        case Done(value):
            return value
        case Failed(error="NotUnderstoodError"):
            raise LabError(f"{came.text} (this is testbed {sources.version()})")
        case Failed():
            answers.throw(came, ERRORS)
        case Dead(text):
            raise LabError(text)
    raise LabError(f"an unexpected answer: {came}")


def told(value: Raw) -> About:
    """Return what a keeper reports, from the value of its answer."""
    return understood(_TOLD, value)


class Refusal(Struct):
    """Why QEMU refuses a command."""

    desc: str


class QemuSaid(Struct):
    """A line from QEMU (docs/interop/qmp-spec): an answer, its greeting or an event."""

    id: str = ""
    error: Refusal | None = None
    result: Raw = field(default=Raw(b"null"), name="return")


class QemuStatus(Struct):
    """The answer to `query-status` and `query-migrate`."""

    status: str = ""


class GuestSaid(Struct):
    """A line from the guest's PID 1 (provision/testbed-guest.c): an event, or the result of a command."""

    event: str = ""
    done: str = ""
    error: str | None = None


QEMU: Decoder[QemuSaid] = Decoder(QemuSaid)
GUEST: Decoder[GuestSaid] = Decoder(GuestSaid)
TEXT = Decoder(str)
STATUS: Decoder[QemuStatus] = Decoder(QemuStatus)
