"""Check argument lists and environments by the rules of execve(2) (pure)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from reprlib import repr as shorten
from typing import Any

MOST_WORD = 128 * 1024 - 1  # bytes of one argument or variable (MAX_ARG_STRLEN, which counts the final NUL)
MOST_ARGV = 1024 * 1024  # bytes of all: Linux takes a quarter of the stack's limit, 2 MB unless that was lowered


def argument(word: Any) -> bytes:
    """Return a word of a command as bytes; the sentence of a ValueError says why it is not valid."""
    return _bytes(word, "a word of a command")


def arguments(argv: Any) -> tuple[bytes, ...]:
    """Return an argument list as bytes; the sentence of a ValueError says why it is not valid."""
    if isinstance(argv, str | bytes):
        raise ValueError(f"a command is a list of words, not one text: {shorten(argv)}")
    words = tuple(map(argument, argv))
    if not words:
        raise ValueError("a command needs at least one word, the program, and this has none")
    if not words[0]:
        raise ValueError("the first word of a command is the program, and here it is empty")
    if (size := sum(len(word) + 1 for word in words)) > MOST_ARGV:
        raise ValueError(f"a command has at most {MOST_ARGV} bytes in all, and this has {size}")
    return words


def environment(env: Mapping[Any, Any]) -> tuple[bytes, ...]:
    """Return NAME=value of every variable as bytes; a ValueError names the one that is not valid."""
    if env is os.environ:  # which Python and the kernel have checked
        return tuple(name + b"=" + value for name, value in os.environb.items())
    found = []
    for name, value in env.items():
        raw = _bytes(name, "the name of a variable")
        if not raw or b"=" in raw:
            raise ValueError(f"{name!r} can't be the name of an environment variable: it is empty or has a `=`")
        found.append(raw + b"=" + _bytes(value, f"the variable {name}"))
    return tuple(found)


def assignments(rows: Sequence[bytes]) -> None:
    """Raise ValueError unless each item is NAME=value."""
    if any(row.find(b"=") < 1 for row in rows) or b"\0" in b"".join(rows):
        raise ValueError("an environment has NAME=value of each variable, and this has something else")


def folder(path: Any) -> bytes:
    """Return the path of a folder as bytes; raise ValueError if it is not a valid path."""
    raw = _bytes(path, "a folder")
    if not raw:
        raise ValueError("a folder's path can't be empty; write . for the present one")
    return raw


def _bytes(word: Any, what: str) -> bytes:
    if not isinstance(word, str | bytes) and isinstance(word, os.PathLike):
        word = os.fspath(word)
    if not isinstance(word, str | bytes):
        raise ValueError(f"{what} must be a text, not {shorten(word)}")
    try:
        raw = os.fsencode(word)
    except UnicodeEncodeError as e:
        raise ValueError(f"{what} must be text that can be encoded, not {shorten(word)}") from e
    if b"\0" in raw:
        raise ValueError(f"{what} can't have a NUL character, and {shorten(word)} has one")
    if len(raw) > MOST_WORD:
        raise ValueError(f"{what} has at most {MOST_WORD} bytes (execve(2)), and this has {len(raw)}")
    return raw
