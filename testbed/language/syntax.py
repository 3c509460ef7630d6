"""Libyaml's complaints in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.errors import Problem
from testbed.language.document import Mark

# Libyaml's complaints (it has no codes for them) in plain words: whether they are shown where the construct began and
# not where it went wrong, and a sentence; {line} and {sign} are those of the beginning.
_SYNTAX: Mapping[str, tuple[bool, str]] = {
    "could not find expected ':'": (True, "a `:` must follow a key: `key: value`"),
    "mapping values are not allowed in this context": (
        False,
        "a key can't end here: write a space after the colon of a key, and put a text that contains a colon in quotes",
    ),
    "did not find expected key": (
        False,
        "this is not a key of the mapping that begins in line {line}: check the indentation, quotes and brackets",
    ),
    "did not find expected '-' indicator": (
        False,
        "this is not an item of the list that begins in line {line}: every item begins with `- ` in the same column",
    ),
    "did not find expected ',' or '}'": (False, "a comma or the `}}` is missing: `{sign}` is open since line {line}"),
    "did not find expected ',' or ']'": (False, "a comma or the `]` is missing: `{sign}` is open since line {line}"),
    "did not find expected node content": (False, "a value is missing here"),
    "block sequence entries are not allowed in this context": (False, "begin the list on a line of its own"),
    "found unexpected end of stream": (True, "this quote is never closed"),
    "found unknown escape character": (False, "write a backslash twice in double quotes, or use single quotes"),
    "did not find expected alphabetic or numeric character": (
        True,
        "put a text that begins with {sign} in quotes: without them it is an anchor or an alias",
    ),
    "did not find expected <document start>": (
        False,
        "this does not belong to the mapping above: a file is a single mapping",
    ),
}


def complaint(said: str, context: str, wrong: Mark, began: Mark) -> Problem:
    """Return libyaml's message as a problem; `began` is the start of the construct that went `wrong`."""
    rows, sign = wrong.source.rows, _character(wrong)
    if sign == "\t":
        return wrong.problem("a tab can't indent a line: YAML takes spaces only")
    if sign and sign in "%@`" and context == "while scanning for the next token":
        return wrong.problem(f"a value can't begin with {sign}: put it in quotes")
    at_beginning, words = _SYNTAX.get(said, (False, f"this is not YAML: {said or context}"))
    rest = (row[wrong.column if n == wrong.line else 0 :] for n, row in enumerate(rows) if n >= wrong.line)
    mark = began if at_beginning or not any(row.strip() for row in rest) else wrong
    words = words.format(line=began.line + 1, sign=_character(began))
    return Mark(mark.source, min(mark.line, len(rows) - 1), mark.column).problem(words)


def _character(mark: Mark) -> str:
    rows = mark.source.rows
    return rows[mark.line][mark.column : mark.column + 1] if mark.line < len(rows) else ""
