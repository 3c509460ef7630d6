"""YAML text -> plain data with the place of every key and value, and back: the one module that knows YAML.

Libyaml's C parser gives events with positions; the tree is built here, because its recursive composer
crashes on deep nesting and forgets duplicate keys. Scalars follow the YAML 1.2 core schema: `no` and
`on` are strings, and `1:30` is no number.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import yaml
from msgspec import Struct, field

from testbed.errors import InputError, Problem

Path = tuple[str | int, ...]
_MARK = re.compile("\ufeff")
_DEPTH = 32
_SIZE = 1_000_000
_TEXT = 128 * 1024 - 1  # bytes of a value: what Linux takes as one argument of a program (execve(2), MAX_ARG_STRLEN)
_ROW, _AROUND = 240, 80  # characters of a line that is shown whole, and before the place in a longer one
_SENTENCE = 1000  # characters of what is said, which may quote a name of any length
_NEVER = re.compile("[\0\ud800-\udfff]")  # written as an escape: a NUL, and what is half of a character
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: Mapping[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what ends a line for libyaml; str.splitlines() knows more
_CONTROL = yaml.reader.Reader.NON_PRINTABLE  # compiled already; a byte order mark passes it
# Libyaml's complaints (it has no codes for them) in plain words: whether their place is where the construct began
# rather than where it went wrong, and a sentence; {line} and {sign} are those of the beginning.
_SYNTAX: Mapping[str, tuple[bool, str]] = {
    "could not find expected ':'": (True, "a `:` must follow a key: `key: value`"),
    "mapping values are not allowed in this context": (
        False,
        "no key can end here: write a space after the colon of every key, and put a text with a colon in quotes",
    ),
    "did not find expected key": (
        False,
        "this is no key of the mapping that begins in line {line}: look at the indentation, quotes and brackets",
    ),
    "did not find expected '-' indicator": (
        False,
        "this is no item of the list that begins in line {line}: each begins with `- ` in the same column",
    ),
    "did not find expected ',' or '}'": (False, "a comma or the `}}` is missing: `{sign}` is open since line {line}"),
    "did not find expected ',' or ']'": (False, "a comma or the `]` is missing: `{sign}` is open since line {line}"),
    "did not find expected node content": (False, "a value is missing here"),
    "block sequence entries are not allowed in this context": (False, "a list begins in a line of its own"),
    "found unexpected end of stream": (True, "this quote is never closed"),
    "found unknown escape character": (False, "write a backslash twice in double quotes, or use single quotes"),
    "did not find expected alphabetic or numeric character": (
        True,
        "a text that begins with {sign} is put in quotes: here it means an anchor or alias",
    ),
    "did not find expected <document start>": (False, "this is outside of everything above: one file is one mapping"),
}


class Mark(Struct, frozen=True):
    """A place in a file: line and column count from 0, width is that of the text there."""

    source: Source
    line: int
    column: int
    width: int = 1

    @property
    def text(self) -> str:
        """Return what is written there, "" when it is no single word or not in a file."""
        rows = self.source.rows
        width = min(self.width, _SENTENCE)
        return rows[self.line][self.column : self.column + width] if self.line < len(rows) else ""

    def problem(self, message: str, hint: str = "") -> Problem:
        """Return a problem at this place."""
        rows, name = self.source.rows, self.source.name
        message, hint = _brief(message), _brief(hint)
        if not rows:
            return Problem(message, _brief(name), hint=hint)
        text, caret = _excerpt(rows[self.line], self.column) if self.line < len(rows) else ("", 0)
        width = min(self.width, _ROW - _AROUND) if caret else self.width
        return Problem(message, name, self.line + 1, self.column + 1, _printable(text), width, hint, caret)


class Source(Struct, frozen=True):
    """A file's name as the user wrote it, and its lines; without any it is no file but an option."""

    name: str
    rows: tuple[str, ...]


class Document(Struct):
    """Plain data, the place of each value, and the place of each mapping key (by the path of its value)."""

    data: Any
    values: MutableMapping[Path, Mark] = field(default_factory=dict)
    keys: MutableMapping[Path, Mark] = field(default_factory=dict)

    def at(self, path: Path, *, key: bool = False) -> Mark:
        """Return the place of the deepest part of `path` that was written."""
        for end in range(len(path), -1, -1):
            kinds = (self.keys, self.values) if key and end == len(path) else (self.values, self.keys)
            for marks in kinds:
                if mark := marks.get(path[:end]):
                    return mark
        raise KeyError(path)


class _Open(Struct):
    """A collection whose end event has not come yet."""

    path: Path
    value: Any
    anchor: str | None
    key: str | None = None
    merges: list[Any] = field(default_factory=list)


def parse(text: str, name: str) -> Document:
    """Parse one YAML document; raise InputError with every problem that parsing can see."""
    source = Source(name, tuple(_BREAK.split(text)))
    if bad := _CONTROL.search(text) or _MARK.search(text):
        message = f"the control character U+{ord(bad[0]):04X} has no place in YAML"
        raise InputError(place(source, text, bad.start()).problem(message))
    try:
        return _Builder(source).build(text)
    except yaml.MarkedYAMLError as e:
        raise InputError(_syntax(e, source)) from e
    except yaml.YAMLError as e:
        raise InputError(Problem(f"this is not YAML: {e}", name)) from e


def place(source: Source, text: str, offset: int) -> Mark:
    """Return the place of a character of a text."""
    rows = _BREAK.split(text[:offset])
    return Mark(source, len(rows) - 1, len(rows[-1]))


def _excerpt(row: str, column: int) -> tuple[str, int]:
    """Return a line and 0, or of a long one what is around a column, and that column in it, from 1."""
    if len(row) <= _ROW:
        return row, 0
    begin = max(0, column - _AROUND)
    part = row[begin : begin + _ROW]
    before, after = "..." * bool(begin), "..." * (begin + _ROW < len(row))
    return f"{before}{part}{after}", column - begin + len(before) + 1


def _brief(text: str) -> str:
    """Return a sentence for a terminal: of a long one its beginning and its end."""
    if len(text) > _SENTENCE:
        text = f"{text[: _SENTENCE * 2 // 3]} ... {text[-_SENTENCE // 3 :]}"
    return _printable(text)


def _printable(text: str) -> str:
    """Return the text without what could move the cursor or colour the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)


def _syntax(e: yaml.MarkedYAMLError, source: Source) -> Problem:
    wrong = e.problem_mark or e.context_mark
    began = e.context_mark or wrong
    if wrong is None or began is None:
        return Problem(f"this is not YAML: {e}", source.name)
    sign = _character(source, wrong.line, wrong.column)
    if sign == "\t":
        return Mark(source, wrong.line, wrong.column).problem("a tab can't indent a line: YAML takes spaces only")
    if sign and sign in "%@`" and e.context == "while scanning for the next token":
        return Mark(source, wrong.line, wrong.column).problem(f"a value can't begin with {sign}: put it in quotes")
    at_beginning, words = _SYNTAX.get(str(e.problem), (False, f"this is not YAML: {e.problem or e.context}"))
    rest = (row[wrong.column if n == wrong.line else 0 :] for n, row in enumerate(source.rows) if n >= wrong.line)
    mark = began if at_beginning or not any(row.strip() for row in rest) else wrong
    words = words.format(line=began.line + 1, sign=_character(source, began.line, began.column))
    return Mark(source, min(mark.line, len(source.rows) - 1), mark.column).problem(words)


def _character(source: Source, line: int, column: int) -> str:
    return source.rows[line][column : column + 1] if line < len(source.rows) else ""


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
                self.put(event, _scalar(event.value) if plain else event.value, event.anchor)
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
                        self.mark(event).problem("a second document begins here: put it in a file of its own"),
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
                self.problems.append(self.mark(event).problem("`<<` merges a mapping into this one, and this is none"))
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
            self.problems.append(begun.problem("a key is a word, and this is a list, a mapping or an alias"))
            key = f"?{len(top.value)}"
        if key in top.value:
            first = self.document.keys[(*top.path, key)]
            self.problems.append(
                self.mark(event).problem(f"the key {key!r} is here twice", f"first in line {first.line + 1}")
            )
        top.key = key
        self.document.keys.setdefault((*top.path, key), self.mark(event))

    def judge(self, event: Any) -> None:
        """Note what no name, path, argument, password or kernel parameter can be."""
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
    """Return how many values this is, and how deeply they are nested."""
    if not isinstance(value, dict | list):
        return 1, 0
    inside = [_extent(v) for v in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(size for size, _ in inside), 1 + max((depth for _, depth in inside), default=0)


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
        found.values[path] = over.at(path)
        for key in high:
            deeper = (*path, key)
            found.keys[deeper] = over.at(deeper, key=True)
            merged[key] = _merge(found, over, deeper) if key in low else _adopt(found, over, deeper)
        return merged
    return _adopt(found, over, path)


def _adopt(found: Document, over: Document, path: Path) -> Any:
    forget(found, path)
    value = get(over.data, path)
    for part in inside(value, path):
        for marks, theirs in ((found.values, over.values), (found.keys, over.keys)):
            if (mark := theirs.get(part)) is not None:
                marks[part] = mark
    # What an alias or a `<<` stands for has no place of its own.
    found.values.setdefault(path, over.at(path))
    found.keys.setdefault(path, over.at(path, key=True))
    return value


def forget(document: Document, path: Path) -> None:
    """Remove the places of a value, of its key and of everything in it."""
    for part in inside(get(document.data, path), path):
        document.values.pop(part, None)
        document.keys.pop(part, None)


def inside(data: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the path of a value and of everything in it."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from inside(value, (*path, key))


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


def override(document: Document, dotted: str, value: Document, place: Mark, key: Mark) -> Document:
    """Return the document with one value set; in `links.cable.loss` an item of a list goes by name, end or number.

    `place` is where the value is written, `key` where its path is.
    """
    path: Path = ()
    parts = dotted.split(".")
    while parts:
        here = get(document.data, path)
        where = ".".join(map(str, path)) or "the file"
        if here is not None and not isinstance(here, dict | list):
            raise InputError(key.problem(f"{where} is {here!r} and holds no {parts[0]!r}"))
        named: dict[str, Any] = _names(here) if isinstance(here, list) else {k: k for k in here or ()}
        # Names may have dots, and a sysctl always has: the longest that is there is meant.
        heads = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        head = next((h for h in heads if h in named), heads[0] if path[-1:] == ("sysctl",) else parts[0])
        if isinstance(here, list) and head not in named:
            known = ", ".join(k for k in reversed(named) if not k.isdigit()) or f"0 to {len(here) - 1}"
            raise InputError(key.problem(f"{where} has no item {head!r}", f"there are: {known}"))
        path = (*path, named.get(head, head))
        parts = parts[head.count(".") + 1 :]
    # The places of all other values stay where they are: an experiment lays a thousand cases over one document.
    hidden: dict[Path, Any] = dict.fromkeys(inside(get(document.data, path), path))
    values, keys = ChainMap({**hidden, path: place}, document.values), ChainMap({**hidden, path: key}, document.keys)
    return Document(_replaced(document.data, path, value.data), values, keys)


def _names(items: list[Any]) -> dict[str, int]:
    """Return what items of a list are called in a dotted path: numbers, ends of links, and names before these."""
    found = {str(n): n for n in range(len(items))}
    mappings = [(n, item) for n, item in enumerate(items) if isinstance(item, dict)]
    found |= {end: n for n, item in mappings for end in item.get("ends") or () if isinstance(end, str)}
    return found | {item["name"]: n for n, item in mappings if isinstance(item.get("name"), str)}


def _replaced(data: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    head, *rest = path
    if isinstance(data, list):
        return [_replaced(item, tuple(rest), value) if n == head else item for n, item in enumerate(data)]
    here = data if isinstance(data, dict) else {}
    return {**here, head: _replaced(here.get(head), tuple(rest), value)}


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes what `parse` reads: a text that would be read as something else is quoted, and nothing is an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        """Say so of everything."""
        return True


def _quoted(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text else None if isinstance(_scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)


def written(data: Any) -> str:
    """Return plain data as YAML, with the innermost lists and mappings in one line: `parse` gives the same data."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=_ROW // 2
    )
    return text
