"""The regulatory database of the kernel (wireless-regdb): where a country allows access points.

Source: net/wireless/reg.c (struct fwdb_header, fwdb_country, fwdb_collection, fwdb_rule; all big endian).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from msgspec import Struct

MAGIC = b"RGDB"
_VERSION = 20
_DFS, _NO_IR = 0x04, 0x08  # enum fwdb_flags


class Rule(Struct, frozen=True):
    """A range of frequencies in kHz, and whether it requires radar detection (DFS) or forbids to initiate radiation."""

    start: int
    end: int
    dfs: bool
    no_ir: bool


def rules(database: bytes, country: str) -> tuple[Rule, ...] | None:
    """Return the rules of a country (ISO 3166 alpha-2), None if it has none; ValueError for another kind of file."""
    if database[:4] != MAGIC or struct.unpack_from(">I", database, 4)[0] != _VERSION:
        raise ValueError("this is not a regulatory database of version 20")
    at = 8
    while at + 4 <= len(database):
        name, pointer = struct.unpack_from(">2sH", database, at)
        if not pointer:
            return None
        if name.decode("ascii", "replace") == country:
            return tuple(_collection(database, pointer << 2))
        at += 4
    return None


def _collection(database: bytes, at: int) -> Iterator[Rule]:
    length, count = database[at], database[at + 1]
    first = at + (length + 1 & ~1)
    for (pointer,) in struct.iter_unpack(">H", database[first : first + 2 * count]):
        _, flags, _, start, end, _ = struct.unpack_from(">BBHIII", database, pointer << 2)
        yield Rule(start, end, bool(flags & _DFS), bool(flags & _NO_IR))


def refusal(database: bytes, country: str, freq: int) -> str:
    """Return why a country forbids an access point on a 20 MHz channel (MHz of its centre), "" if it allows it."""
    found = rules(database, country)
    if found is None:
        return f"there is no country {country} in the regulatory database"
    low, high = (freq - 10) * 1000, (freq + 10) * 1000
    # A channel may lie across two rules that adjoin.
    covering = [r for r in found if r.start < high and r.end > low]
    reached = low
    for rule in sorted(covering, key=lambda r: r.start):
        reached = max(reached, rule.end) if rule.start <= reached else reached
    if reached < high:
        return f"{freq} MHz is not allowed in {country}"
    if any(r.no_ir for r in covering):
        return f"in {country} nobody may begin to transmit at {freq} MHz (NO-IR), which an access point does"
    if any(r.dfs for r in covering):
        return f"in {country} an access point must look for radars at {freq} MHz first (DFS)"
    return ""
