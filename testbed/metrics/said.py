"""Numbers in what a program wrote: by a JSON pointer (RFC 6901), or by a regular expression (pure)."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import msgspec

Search = Callable[[bytes, str], str | None]  # a text and an expression: group 1 of its last match
MOST = 8 << 20  # bytes that are searched


class AbsentError(Exception):
    """A number is not there; the text says why."""


def nobody(data: bytes, expression: str) -> str | None:
    """Search nothing: in place of a search where there is none."""
    raise AbsentError(f"nobody looked for {expression!r}")


def pointed(data: bytes, pointer: str) -> float:
    """Return the number at a JSON pointer; AbsentError says why there is none."""
    try:
        found: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as e:
        raise AbsentError("it is not valid JSON") from e
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and len(key) < 10 and int(key) < len(found):
            found = found[int(key)]
        else:
            raise AbsentError(f"there is nothing at {pointer}")
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise AbsentError(f"what is at {pointer} is not a number")
    return _finite(found)


def captured(data: bytes, expression: str, search: Search) -> float:
    """Return the number that group 1 of an expression's last match has; AbsentError says why there is none."""
    if (group := search(data, expression)) is None:
        raise AbsentError(f"nothing in it matches {expression!r}")
    try:
        return _finite(float(group))
    except ValueError as e:
        raise AbsentError(f"{group[:40]!r}, which {expression!r} matches, is not a number") from e


def _finite(value: float) -> float:
    if not isfinite(value):
        raise AbsentError("it is not a finite number")
    return float(value)
