"""Plain data with the position of every key and value in its file, and problems at these positions."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from msgspec import Struct, field

from testbed.errors import Problem

Path = tuple[str | int, ...]
Fault = tuple[Path, str, str]  # the path of what is wrong, a sentence, a hint
_ROW, _AROUND = 240, 80  # characters of a line that is shown whole, and before the column in a longer one
_SENTENCE = 1000  # characters of what is said, which may quote a name of any length
_BREAKS = ("\r\n", "\r", "\x85", "\u2028", "\u2029")  # what ends a line for libyaml too; str.splitlines() knows more


class Mark(Struct, frozen=True):
    """A position in a file: line and column count from 0, and `width` is the length of the text there."""

    source: Source
    line: int
    column: int
    width: int = 1

    @property
    def text(self) -> str:
        """Return the word that is written at a path, "" if it is not a single word or not in a file."""
        rows = self.source.rows
        width = min(self.width, _SENTENCE)
        return rows[self.line][self.column : self.column + width] if self.line < len(rows) else ""

    def problem(self, message: str, hint: str = "") -> Problem:
        """Return a problem at a path."""
        rows, name = self.source.rows, self.source.name
        message, hint = _brief(message), _brief(hint)
        if not rows:
            return Problem(message, _brief(name), hint=hint)
        text, caret = _excerpt(rows[self.line], self.column) if self.line < len(rows) else ("", 0)
        width = min(self.width, _ROW - _AROUND) if caret else self.width
        return Problem(message, name, self.line + 1, self.column + 1, _printable(text), width, hint, caret)


class Source(Struct, frozen=True):
    """The name of a file as the user wrote it, and its lines; a command-line option has none."""

    name: str
    rows: tuple[str, ...]


class Document(Struct):
    """Plain data with the positions of its values and of its keys (by the path of the value)."""

    data: Any
    values: MutableMapping[Path, Mark] = field(default_factory=dict)
    keys: MutableMapping[Path, Mark] = field(default_factory=dict)

    def at(self, path: Path, *, key: bool = False) -> Mark:
        """Return the position of the deepest part of `path` that is in the file."""
        for end in range(len(path), -1, -1):
            kinds = (self.keys, self.values) if key and end == len(path) else (self.values, self.keys)
            for marks in kinds:
                if mark := marks.get(path[:end]):
                    return mark
        raise KeyError(path)


def rows_of(text: str) -> tuple[str, ...]:
    """Return the lines of a text, as libyaml counts them."""
    for end in _BREAKS:  # two to nine times as fast as a regular expression
        text = text.replace(end, "\n")
    return tuple(text.split("\n"))


def position(source: Source, text: str, offset: int) -> Mark:
    """Return the position of a character in a text."""
    rows = rows_of(text[:offset])
    return Mark(source, len(rows) - 1, len(rows[-1]))


def _excerpt(row: str, column: int) -> tuple[str, int]:
    """Return a line and 0; of a long line only the part around a column, and that column in it, from 1."""
    if len(row) <= _ROW:
        return row, 0
    begin = max(0, column - _AROUND)
    part = row[begin : begin + _ROW]
    before, after = "..." * bool(begin), "..." * (begin + _ROW < len(row))
    return f"{before}{part}{after}", column - begin + len(before) + 1


def _brief(text: str) -> str:
    """Return a sentence for a terminal: a long one is shortened to its beginning and its end."""
    if len(text) > _SENTENCE:
        text = f"{text[: _SENTENCE * 2 // 3]} ... {text[-_SENTENCE // 3 :]}"
    return _printable(text)


def _printable(text: str) -> str:
    """Return the text without characters that could move the cursor or change colours."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)


def forget(document: Document, path: Path) -> None:
    """Remove the positions of a value, of its key and of everything in it."""
    for part in inside(get(document.data, path), path):
        document.values.pop(part, None)
        document.keys.pop(part, None)


def inside(data: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of a value and of everything in it."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from inside(value, (*path, key))


def get(data: Any, path: Path) -> Any:
    """Return the value at a path, None if there is none."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data
