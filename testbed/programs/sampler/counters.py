"""Counters that roles name: numbers in files below /proc/net and /proc/sys/net of a node's network namespace."""

from __future__ import annotations

import os
from collections.abc import Mapping

_BELOW = ("/proc/net/", "/proc/sys/net/")
_MOST = 1 << 20  # bytes of a file that are read
_COUNT = 2**63  # no counter reaches this

Wanted = Mapping[str, Mapping[str, tuple[str, str]]]  # by role and name: a file and a field of it
Counters = dict[tuple[str, str], tuple[int, str]]  # by role and name: a descriptor and a field


def opened(wanted: Wanted) -> Counters:
    """Open the files in this process's namespace, except those that this kernel lacks."""
    files: dict[str, int] = {}
    found: Counters = {}
    for role, counters in wanted.items():
        for name, (file, field) in counters.items():
            if not file.startswith(_BELOW) or ".." in file:
                raise ValueError(f"{role}.{name}: {file} is not a file below {' or '.join(_BELOW)}")
            if file not in files:
                try:
                    files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
            found[role, name] = files[file], field
    return found


def read(counters: Counters) -> dict[str, dict[str, int]]:
    """Read the present numbers, by role and name."""
    texts = {fd: numbers(_text(fd)) for fd, _ in counters.values()}
    values: dict[str, dict[str, int]] = {}
    for (role, name), (fd, field) in counters.items():
        if (number := texts[fd].get(field)) is not None:
            values.setdefault(role, {})[name] = number
    return values


def _text(fd: int) -> str:
    content = b""
    while len(content) < _MOST and (part := os.pread(fd, 1 << 16, len(content))):
        content += part
    return content.decode(errors="replace")


def numbers(text: str) -> dict[str, int]:
    """Parse the numbers of a file (pure).

    They are named GROUP.NAME where a line of names and one of numbers begin with `GROUP:` (/proc/net/netstat, snmp) or
    one line has them in turn (sockstat), NAME where a line is a name and a number (snmp6), and "" where the file is one
    number.
    """
    rows: dict[str, int | None] = {}
    names: dict[str, list[str]] = {}
    for words in filter(None, map(str.split, text.splitlines())):
        head, rest = words[0], words[1:]
        if not head.endswith(":"):
            rows |= {"": _number(head)} if not rest else {head: _number(rest[0])}
        elif not rest or _number(rest[0]) is not None:
            pairs = zip(names.get(head, ()), rest, strict=False)
            rows |= {f"{head[:-1]}.{name}": _number(word) for name, word in pairs}
        elif len(rest) > 1 and _number(rest[1]) is not None:
            rows |= {f"{head[:-1]}.{n}": _number(word) for n, word in zip(rest[::2], rest[1::2], strict=False)}
        else:
            names[head] = rest
    return {name: number for name, number in rows.items() if number is not None and 0 <= number < _COUNT}


def _number(word: str) -> int | None:
    return int(word) if word.removeprefix("-").isdecimal() and len(word) <= 20 else None
