"""What a lab's holder and a guest's keeper answer, and errors as records: an object never travels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, TypeAlias

from msgspec import Raw, Struct
from msgspec.json import Decoder, Encoder

from testbed.errors import BugError, CheckFailed, InputError, LabError, Problem, TestbedError, Unsupported
from testbed.lab.messages import BROKEN


class Born(Struct, frozen=True, tag_field="kind", tag="born"):
    """The first word of PID 1 of a sandbox; its pidfd comes with it."""


class Progress(Struct, frozen=True, tag_field="kind", tag="progress"):
    """How far a request is."""

    value: dict[str, str | int | float | bool]


class Done(Struct, frozen=True, tag_field="kind", tag="done"):
    """A request is performed; what the value is depends on the request."""

    value: Raw = Raw(b"null")


class Failed(Struct, frozen=True, tag_field="kind", tag="error"):
    """A request failed: the class of the error, its text, and the problems of an InputError."""

    error: str
    text: str
    problems: tuple[Problem, ...] = ()


class Dead(Struct, frozen=True, tag_field="kind", tag="dead"):
    """A guest has ended, and how; it comes without having been asked for."""

    text: str


Answer: TypeAlias = Born | Progress | Done | Failed | Dead
_KINDS = (BugError, CheckFailed, LabError, Unsupported, TestbedError)
ERRORS: Mapping[str, type[TestbedError]] = {k.__name__: k for k in _KINDS}

_ENCODER = Encoder()
_DECODER: Decoder[Answer] = Decoder(Answer)


def encode(answer: Answer) -> bytes:
    """Return an answer as it travels."""
    return _ENCODER.encode(answer)


def done(value: object = None) -> Done:
    """Return the answer of a request that is performed."""
    return Done(value if isinstance(value, Raw) else Raw(_ENCODER.encode(value)))


def failed(error: TestbedError, kinds: Mapping[str, type[TestbedError]] = ERRORS) -> Failed:
    """Return an error as a record; one of a class that is not of `kinds` travels as the nearest above it that is."""
    if isinstance(error, InputError):
        return Failed("InputError", "", error.problems)
    return Failed(next(k.__name__ for k in type(error).__mro__ if k.__name__ in kinds), _sendable(str(error)))


def decode(data: bytes) -> Answer:
    """Return an answer that came; LabError when it is none."""
    try:
        return _DECODER.decode(data)
    except BROKEN as e:
        raise LabError(f"an answer that can't be understood, perhaps of another version of testbed: {e}") from e


def throw(came: Failed, kinds: Mapping[str, type[TestbedError]] = ERRORS) -> NoReturn:
    """Raise the error that a record tells."""
    if came.error == "InputError":
        raise InputError(*came.problems)
    raise kinds.get(came.error, LabError)(came.text)


def _sendable(text: str) -> str:
    """Return a text as UTF-8 has it: names of files may hold bytes that are none (surrogateescape)."""
    return text.encode(errors="backslashreplace").decode()
