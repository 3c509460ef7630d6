"""Netlink as bytes: encode and decode attributes and messages (pure).

Requests are encoded by hand for the sake of bring-up speed: a veth pair takes pyroute2's encoder 117 us, this one 5.
pyroute2 decodes what is read back and not time-critical.
Sources: include/uapi/linux/netlink.h, rtnetlink.h, if_link.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, Protocol, TypeVar

from msgspec import Struct

from testbed.errors import LabError

P = ParamSpec("P")
T = TypeVar("T")

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NESTED = 0x8000
NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_NETFILTER, NETLINK_GENERIC = 0, 4, 12, 16

_HEAD = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_PAD = (b"", b"\0\0\0", b"\0\0", b"\0")


# Python's errors for bytes that are truncated, malformed, or not valid for their field.
_BROKEN = (struct.error, LookupError, ValueError, OverflowError)


def decoder(read: Callable[P, T]) -> Callable[P, T]:
    """Make a function that decodes a message of the kernel raise LabError if the message is truncated or malformed."""

    @wraps(read)
    def reads(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except _BROKEN as e:
            what = read.__name__.strip("_").removeprefix("parse_")
            # Some of these exceptions quote all of what they refuse.
            raise LabError(f"a message of the kernel is truncated or malformed ({what}): {str(e)[:200]}") from e

    return reads


class Space(Protocol):
    """What encoding a request may ask of the namespace that it is for."""

    def index(self, ifname: str) -> int:
        """Return the interface index of `ifname` in this namespace."""

    def claim(self, ifname: str, node: str | None = None) -> int:
        """Choose the index for a new interface of this namespace, or of `node`'s."""

    def namespace(self, node: str) -> int:
        """Return a file descriptor of another node's network namespace."""

    def radio(self, name: str) -> str:
        """Return the name of a radio of this lab in the kernel, where it differs from those of other labs."""

    def wiphy(self, radio: str) -> int:
        """Return the number of a radio that is in this namespace."""


class Message(Struct, frozen=True):
    """One netlink request without its header; `family` names a generic netlink family, "" is rtnetlink."""

    kind: int
    flags: int
    body: bytes
    family: str = ""


def attr(kind: int, data: bytes) -> bytes:
    """Encode one attribute (struct nlattr), padded to four bytes."""
    return _ATTR.pack(4 + len(data), kind) + data + _PAD[len(data) & 3]


def text(kind: int, value: str) -> bytes:
    """Encode a NUL-terminated string."""
    return attr(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    """Encode an 8-bit number."""
    return attr(kind, bytes((value,)))


def u16(kind: int, value: int) -> bytes:
    """Encode a 16-bit number in host order."""
    return attr(kind, struct.pack("=H", value))


def u32(kind: int, value: int) -> bytes:
    """Encode a 32-bit number in host order."""
    return attr(kind, struct.pack("=I", value))


def u64(kind: int, value: int) -> bytes:
    """Encode a 64-bit number in host order."""
    return attr(kind, struct.pack("=Q", value))


def nest(kind: int, *parts: bytes) -> bytes:
    """Encode a nested attribute."""
    return attr(kind | NESTED, b"".join(parts))


def header(length: int, kind: int, flags: int, seq: int) -> bytes:
    """Encode struct nlmsghdr for a body of `length` bytes."""
    return _HEAD.pack(16 + length, kind, flags, seq, 0)


def messages(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """Split what a socket received into (type, flags, sequence number, body)."""
    rows, at = [], 0
    while at + 16 <= len(data):
        length, kind, flags, seq, _ = _HEAD.unpack_from(data, at)
        if length < 16:
            break
        rows.append((kind, flags, seq, data[at + 16 : at + length]))
        at += (length + 3) & ~3
    return rows


def attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Decode the attributes from offset `at`; of a repeated one, keep the last."""
    fields = {}
    while at + 4 <= len(data):
        length, kind = _ATTR.unpack_from(data, at)
        if length < 4:
            break
        fields[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return fields
