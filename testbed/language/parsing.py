"""YAML text to Document: the only module that reads YAML.

Libyaml's C parser yields events with positions; the tree is built here, because its recursive composer
crashes on deep nesting and loses duplicate keys. Scalars follow the YAML 1.2 core schema: `no` and
`on` are strings, and `1:30` is not a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from msgspec import Struct, field

from testbed.errors import InputError, Problem
from testbed.language.document import Document, Mark, Path, Source, position, rows_of
from testbed.language.syntax import complaint

_MARK = re.compile("\ufeff")
_DEPTH = 32
_SIZE = 1_000_000
_TEXT = 128 * 1024 - 1  # bytes of a value: what Linux takes as one argument of a program (execve(2), MAX_ARG_STRLEN)
_NEVER = re.compile("[\0\ud800-\udfff]")  # written as an escape: a NUL, and what is half of a character
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONTROL = yaml.reader.Reader.NON_PRINTABLE  # compiled already; a byte order mark passes it


class _Open(Struct):
    """A collection whose end event is still to come."""

    path: Path
    value: Any
    anchor: str | None
    key: str | None = None
    merges: list[Any] = field(default_factory=list)


def parse(text: str, name: str) -> Document:
    """Parse one YAML document; raise InputError with every problem that shows while parsing."""
    source = Source(name, rows_of(text))
    if bad := _CONTROL.search(text) or _MARK.search(text):
        message = f"the control character U+{ord(bad[0]):04X} is not allowed in YAML"
        raise InputError(position(source, text, bad.start()).problem(message))
    try:
        return _Builder(source).build(text)
    except yaml.MarkedYAMLError as e:
        raise InputError(_syntax(e, source)) from e
    except yaml.YAMLError as e:
        raise InputError(Problem(f"this is not YAML: {e}", name)) from e


class _Builder(Struct):
    source: Source
    document: Document = field(default_factory=lambda: Document(None))
    stack: list[_Open] = field(default_factory=list)
    anchors: dict[str, tuple[Any, int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    size: int = 0
    roots: int = 0

    def build(self, text: str) -> Document:
        for event in yaml.parse(text, Loader=_Loader):
            self.take(event)
        if self.problems:
            raise InputError(*self.problems)
        self.document.values.setdefault((), Mark(self.source, 0, 0))
        return self.document

    def mark(self, event: Any) -> Mark:
        start, end = event.start_mark, event.end_mark
        if isinstance(event, yaml.ScalarEvent) and start.index == end.index:
            # Nothing is written there: the `:` or `-` before it, also where that ends the file.
            line = min(start.line, len(self.source.rows) - 1)
            column = start.column if line == start.line else len(self.source.rows[line])
            return Mark(self.source, line, max(0, column - 1))
        same = start.line == end.line and end.column > start.column
        return Mark(self.source, start.line, start.column, end.column - start.column if same else 1)

    def take(self, event: Any) -> None:
        match event:
            case yaml.ScalarEvent():
                self.judge(event)
                plain = event.implicit[0] and event.style in (None, "")
                self.put(event, scalar(event.value) if plain else event.value, event.anchor)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self.deepen(event, 1)
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
                    self.put(event, {}, None)
                else:
                    value, size, depth = self.anchors[event.anchor]
                    self.grow(event, size)
                    self.deepen(event, depth)
                    self.put(event, value, None)
            case yaml.DocumentStartEvent():
                self.roots += 1
                if self.roots > 1:
                    raise InputError(
                        *self.problems,
                        self.mark(event).problem("a second document begins here: put it in another file"),
                    )

    def path(self) -> Path:
        """Return the path of the next value."""
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
            self.anchors[anchor] = (value, *_extent(value))
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
                self.problems.append(
                    self.mark(event).problem("`<<` merges a mapping into this one, and its value is not a mapping")
                )
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
            begun = self.document.values.get((*top.path, ""), self.mark(event))
            self.problems.append(begun.problem("a key must be a word, not a list, a mapping or an alias"))
            key = f"?{len(top.value)}"
        if key in top.value:
            first = self.document.keys[(*top.path, key)]
            self.problems.append(
                self.mark(event).problem(f"the key {key!r} is given twice", f"first in line {first.line + 1}")
            )
        top.key = key
        self.document.keys.setdefault((*top.path, key), self.mark(event))

    def judge(self, event: Any) -> None:
        """Report a value that can't be a name, path, argument, password or kernel parameter."""
        if bad := _NEVER.search(event.value):
            why = "no name, path, command or value for the kernel has it"
            what = f"a text can't have the character U+{ord(bad[0]):04X}: {why}"
            self.problems.append(self.mark(event).problem(what))
        elif len(event.value) > _TEXT // 4 and (size := len(event.value.encode())) > _TEXT:
            what = f"a text of {size} bytes is too long: at most {_TEXT}"
            self.problems.append(self.mark(event).problem(what))

    def grow(self, event: Any, by: int) -> None:
        self.size += by
        if self.size > _SIZE:
            problem = self.mark(event).problem(f"the file has more than {_SIZE} values, aliases expanded")
            raise InputError(*self.problems, problem)

    def deepen(self, event: Any, by: int) -> None:
        if len(self.stack) + by > _DEPTH:
            raise InputError(*self.problems, self.mark(event).problem(f"nested more than {_DEPTH} levels deep"))


def _extent(value: Any) -> tuple[int, int]:
    """Return the number of values in this one, and the depth of their nesting."""
    if not isinstance(value, dict | list):
        return 1, 0
    inside = [_extent(v) for v in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(size for size, _ in inside), 1 + max((depth for _, depth in inside), default=0)


def scalar(text: str) -> Any:
    """Return the value of a text without quotes (YAML 1.2 core schema)."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) < 20 else text
    return float(text) if _FLOAT.fullmatch(text) else text


def _syntax(e: yaml.MarkedYAMLError, source: Source) -> Problem:
    wrong = e.problem_mark or e.context_mark
    began = e.context_mark or wrong
    if wrong is None or began is None:
        return Problem(f"this is not YAML: {e}", source.name)
    at, start = Mark(source, wrong.line, wrong.column), Mark(source, began.line, began.column)
    return complaint(str(e.problem or ""), str(e.context or ""), at, start)
