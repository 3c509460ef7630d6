"""YAML text -> plain data with the place of every key and value: the one module that reads YAML.

Libyaml's C parser gives events with positions; the tree is built here, because its recursive composer
crashes on deep nesting and forgets duplicate keys. Scalars follow the YAML 1.2 core schema: `no` and
`on` are strings, and `1:30` is no number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from testbed.errors import InputError, Problem

Path = tuple[str | int, ...]
_DEPTH = 32
_SIZE = 1_000_000
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a file: line and column count from 0, width is that of the text there."""

    source: Source
    line: int
    column: int
    width: int = 1

    def problem(self, message: str, hint: str = "") -> Problem:
        """Return a problem at this place."""
        rows = self.source.rows
        text = rows[self.line] if self.line < len(rows) else ""
        return Problem(message, self.source.name, self.line + 1, self.column + 1, text, self.width, hint)


@dataclass(frozen=True, slots=True)
class Source:
    """A file's name as the user wrote it, and its lines."""

    name: str
    rows: tuple[str, ...]


@dataclass(slots=True)
class Document:
    """Plain data, the place of each value, and the place of each mapping key (by the path of its value)."""

    data: Any
    values: dict[Path, Mark] = field(default_factory=dict)
    keys: dict[Path, Mark] = field(default_factory=dict)

    def at(self, path: Path, *, key: bool = False) -> Mark:
        """Return the place of the deepest part of `path` that was written."""
        for end in range(len(path), -1, -1):
            marks = self.keys if key and end == len(path) else self.values
            if (mark := marks.get(path[:end])) or (mark := self.keys.get(path[:end])):
                return mark
        raise KeyError(path)


@dataclass(slots=True)
class _Open:
    """A collection whose end event has not come yet."""

    path: Path
    value: Any
    anchor: str | None
    key: str | None = None
    merges: list[Any] = field(default_factory=list)


def parse(text: str, name: str) -> Document:
    """Parse one YAML document; raise InputError with every problem that parsing can see."""
    source = Source(name, tuple(text.splitlines()))
    try:
        return _Builder(source).build(text)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        place = Mark(source, mark.line if mark else 0, mark.column if mark else 0)
        raise InputError(place.problem(f"this is not YAML: {e.problem or e.context}")) from e
    except yaml.YAMLError as e:
        raise InputError(Problem(f"this is not YAML: {e}", name)) from e


@dataclass(slots=True)
class _Builder:
    source: Source
    document: Document = field(default_factory=lambda: Document(None))
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[Any, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    size: int = 0
    roots: int = 0

    def build(self, text: str) -> Document:
        try:
            for event in yaml.parse(text, Loader=_Loader):
                self.take(event)
        except UnicodeEncodeError as e:
            raise InputError(Problem(f"this is not YAML: {e.reason}", self.source.name)) from e
        if self.problems:
            raise InputError(*self.problems)
        self.document.values.setdefault((), Mark(self.source, 0, 0))
        return self.document

    def mark(self, event: Any) -> Mark:
        start, end = event.start_mark, event.end_mark
        same = start.line == end.line and end.column > start.column
        return Mark(self.source, start.line, start.column, end.column - start.column if same else 1)

    def take(self, event: Any) -> None:
        match event:
            case yaml.ScalarEvent():
                plain = event.implicit[0] and event.style in (None, "")
                self.put(event, _scalar(event.value) if plain else event.value, event.anchor)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                if len(self.stack) >= _DEPTH:
                    raise InputError(*self.problems, self.mark(event).problem(f"nested more than {_DEPTH} levels deep"))
                value: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
                self.stack.append(_Open(self.path(), value, event.anchor))
                self.document.values[self.stack[-1].path] = self.mark(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                done = self.stack.pop()
                for merged in done.merges:
                    for key, value in merged.items():
                        done.value.setdefault(key, value)
                self.put(event, done.value, done.anchor, done.path)
            case yaml.AliasEvent():
                if event.anchor not in self.anchors:
                    self.problems.append(self.mark(event).problem(f"there is no anchor &{event.anchor} before this"))
                    self.put(event, None, None)
                else:
                    value, size = self.anchors[event.anchor]
                    self.grow(event, size)
                    self.put(event, value, None)
            case yaml.DocumentStartEvent():
                self.roots += 1
                if self.roots > 1:
                    raise InputError(
                        *self.problems,
                        self.mark(event).problem("a second document begins here; one file has one"),
                    )

    def path(self) -> Path:
        """Return the path of the value that comes next."""
        if not self.stack:
            return ()
        top = self.stack[-1]
        if isinstance(top.value, list):
            return (*top.path, len(top.value))
        return (*top.path, top.key if top.key is not None else "")

    def put(self, event: Any, value: Any, anchor: str | None, path: Path | None = None) -> None:
        if path is None:
            self.grow(event, 1)
        if anchor is not None:
            self.anchors[anchor] = (value, _count(value))
        if not self.stack:
            self.document.data = value
            self.document.values.setdefault((), self.mark(event))
            return
        top = self.stack[-1]
        if isinstance(top.value, dict) and top.key is None:
            self.put_key(event, value)
            return
        if path is None:
            self.document.values[self.path()] = self.mark(event)
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key == "<<":
            parts = value if isinstance(value, list) else [value]
            if not all(isinstance(p, dict) for p in parts):
                self.problems.append(self.mark(event).problem("`<<` merges mappings, and this is none"))
            top.merges += [p for p in parts if isinstance(p, dict)]
            top.key = None
        else:
            top.value[top.key] = value
            top.key = None

    def put_key(self, event: Any, value: Any) -> None:
        top = self.stack[-1]
        if isinstance(event, yaml.ScalarEvent):
            key = event.value
        else:
            self.problems.append(self.mark(event).problem("a key must be a word"))
            key = f"?{len(top.value)}"
        if key in top.value:
            first = self.document.keys[(*top.path, key)]
            self.problems.append(
                self.mark(event).problem(f"the key {key!r} is here twice", f"first in line {first.line + 1}")
            )
        top.key = key
        self.document.keys.setdefault((*top.path, key), self.mark(event))

    def grow(self, event: Any, by: int) -> None:
        self.size += by
        if self.size > _SIZE:
            raise InputError(self.mark(event).problem(f"more than {_SIZE} values, aliases expanded"))


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) < 20 else text
    return float(text) if _FLOAT.fullmatch(text) else text


def merge(under: Document, over: Document) -> Document:
    """Lay one document over another: mappings merge by key, everything else replaces; places come along."""
    found = Document(under.data, dict(under.values), dict(under.keys))
    found.data = _merge(found, over, ())
    return found


def _merge(found: Document, over: Document, path: Path) -> Any:
    low, high = get(found.data, path), get(over.data, path)
    if isinstance(low, dict) and isinstance(high, dict):
        merged = dict(low)
        found.values[path] = over.values.get(path, found.values.get(path, next(iter(over.values.values()))))
        for key in high:
            deeper = (*path, key)
            if deeper in over.keys:
                found.keys[deeper] = over.keys[deeper]
            merged[key] = _merge(found, over, deeper) if key in low else _adopt(found, over, deeper)
        return merged
    return _adopt(found, over, path)


def _adopt(found: Document, over: Document, path: Path) -> Any:
    for marks, theirs in ((found.values, over.values), (found.keys, over.keys)):
        for old in [p for p in marks if p[: len(path)] == path and p != path]:
            del marks[old]
        marks.update({p: m for p, m in theirs.items() if p[: len(path)] == path})
    return get(over.data, path)


def get(data: Any, path: Path) -> Any:
    """Return the value at a path, None where there is none."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data
