"""The answers of a lab's holder and of a guest's keeper, as records; errors travel as records too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from msgspec import Raw, Struct
from msgspec.json import Decoder, Encoder

from testbed.errors import BugError, CheckFailed, InputError, LabError, Problem, TestbedError, Unsupported
from testbed.lab.messages import BROKEN


class NotUnderstoodError(LabError):
    """A request or an answer is not a valid one: the other end may be another version of testbed."""


class Born(Struct, frozen=True, tag_field="kind", tag="born"):
    """The first message from PID 1 of a sandbox, sent with its pidfd."""


class Progress(Struct, frozen=True, tag_field="kind", tag="progress"):
    """The progress of a request."""

    value: dict[str, str | int | float | bool]


class Done(Struct, frozen=True, tag_field="kind", tag="done"):
    """A request was performed; the type of the value depends on the request."""

    value: Raw = Raw(b"null")


class Failed(Struct, frozen=True, tag_field="kind", tag="error"):
    """A request failed: class and text of the error, and the problems of an InputError."""

    error: str
    text: str
    problems: tuple[Problem, ...] = ()


class Dead(Struct, frozen=True, tag_field="kind", tag="dead"):
    """A guest has ended; sent without a request."""

    text: str


Answer: TypeAlias = Born | Progress | Done | Failed | Dead
_KINDS = (BugError, CheckFailed, NotUnderstoodError, LabError, Unsupported, TestbedError)
ERRORS: Mapping[str, type[TestbedError]] = {k.__name__: k for k in _KINDS}

_ENCODER = Encoder()
_DECODER: Decoder[Answer] = Decoder(Answer)


def encode(answer: Answer) -> bytes:
    """Encode an answer."""
    return _ENCODER.encode(answer)


def done(value: object = None) -> Done:
    """Return the answer to a request that was performed."""
    return Done(value if isinstance(value, Raw) else Raw(_ENCODER.encode(value)))


def failed(error: TestbedError, kinds: Mapping[str, type[TestbedError]] = ERRORS) -> Failed:
    """Return an error as a record; a class that `kinds` lacks is replaced by its nearest base class there."""
    if isinstance(error, InputError):
        return Failed("InputError", "", error.problems)
    return Failed(next(k.__name__ for k in type(error).__mro__ if k.__name__ in kinds), _sendable(str(error)))


def decode(data: bytes) -> Answer:
    """Decode an answer; raise NotUnderstoodError if it is not a valid one."""
    try:
        return _DECODER.decode(data)
    except BROKEN as e:
        raise NotUnderstoodError(f"an answer is not valid: {e}") from e


def throw(came: Failed, kinds: Mapping[str, type[TestbedError]] = ERRORS) -> NoReturn:
    """Raise the error in a record."""
    if came.error == "InputError":
        raise InputError(*came.problems)
    raise kinds.get(came.error, LabError)(came.text)


def _sendable(text: str) -> str:
    """Return a text as valid UTF-8: names of files may hold other bytes (surrogateescape)."""
    return text.encode(errors="backslashreplace").decode()
