"""What requests to a lab's holder and to a guest's keeper have in common."""

from __future__ import annotations

from typing import TypeVar

from msgspec import Raw, Struct
from msgspec.json import Decoder, Encoder

from testbed import __version__
from testbed.errors import InputError
from testbed.lab.answers import NotUnderstoodError
from testbed.lab.messages import BROKEN

T = TypeVar("T")
_ENCODER = Encoder()


class Asked(Struct, frozen=True, kw_only=True, tag_field="verb", tag=str.lower):
    """A request; `version` is the sender's version of testbed."""

    version: str = __version__


class Status(Asked, frozen=True):
    """Tell what the lab, or the guest, is and has."""


class Keep(Asked, frozen=True):
    """Let the lab, or the guest, outlive the program that made it."""


def encode(question: Asked) -> bytes:
    """Encode a request."""
    try:
        return _ENCODER.encode(question)
    except UnicodeEncodeError as e:
        raise InputError(f"a text cannot be encoded: {e}") from e


def understood(decoder: Decoder[T], value: Raw) -> T:
    """Decode the value of an answer; raise NotUnderstoodError if it is not of its type."""
    try:
        return decoder.decode(bytes(value))
    except BROKEN as e:
        raise NotUnderstoodError(f"an answer is not valid: {e}") from e
