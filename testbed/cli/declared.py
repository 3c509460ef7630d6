"""How verbs declare their arguments and options; and command lines in plain form, which need no parser.

To import typer takes longer than to bring a small lab up. What is plain is read here; everything else, what is wrong,
`--help` and the shell's completion are typer's, which is told the same declarations (`app`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints


class Argument(NamedTuple):
    """A word of a command line; `autocompletion` returns what it may be, for the shell."""

    help: str = ""
    dir_okay: bool = True
    autocompletion: Callable[..., list[str]] | None = None


class Option(NamedTuple):
    """An option, by all its names; of a number the least and the greatest value."""

    names: str
    help: str = ""
    metavar: str | None = None
    min: int | None = None
    max: int | None = None


class Declared(NamedTuple):
    """A parameter of a verb: what it is on the command line, its type without None, and whether it is a list."""

    what: Argument | Option
    kind: type
    many: bool
    required: bool


def declared(function: Callable[..., object]) -> dict[str, Declared]:
    """Return what a verb declares, by the names of its parameters."""
    hints = get_type_hints(function, include_extras=True)
    parameters = signature(function).parameters
    return {name: _declared(hints[name], parameters[name].default is Parameter.empty) for name in parameters}


def _declared(hint: Any, required: bool) -> Declared:
    plain, what = get_args(hint)
    kinds = [kind for kind in get_args(plain) if kind is not NoneType] if get_origin(plain) is not list else [plain]
    kind = kinds[0] if kinds else plain
    many = get_origin(kind) is list
    return Declared(what, get_args(kind)[0] if many else kind, many, required)


def plain(function: Callable[..., object], words: Sequence[str]) -> dict[str, object] | None:
    """Return the arguments of a command line in plain form, None for one that a parser is to read, or to refuse."""
    known = declared(function)
    options = {o: n for n, d in known.items() if isinstance(d.what, Option) for o in d.what.names.split()}
    found: dict[str, Any] = {}
    given: list[str] = []
    rest = list(words)
    while rest:
        if not (word := rest.pop(0)).startswith("-") or word == "-":
            given.append(word)
            continue
        if (name := options.get(word)) is None or (name in found and not known[name].many):
            return None
        if known[name].kind is bool:
            found[name] = True
        elif not rest or rest[0].startswith("-") or (value := _value(known[name], rest.pop(0))) is None:
            return None
        else:
            found[name] = [*found.get(name, []), value] if known[name].many else value
    for name, one in ((n, d) for n, d in known.items() if isinstance(d.what, Argument)):
        taken, given = (given, []) if one.many else (given[:1], given[1:])
        values = [_value(one, word) for word in taken]
        if None in values or (one.required and not values):
            return None
        if values:
            found[name] = values if one.many else values[0]
    missing = [name for name, one in known.items() if one.required and name not in found]
    return None if given or missing else found


def _value(one: Declared, word: str) -> object:
    """Return a word by its type, None where that is not plain."""
    if not word:
        return None
    if one.kind is Path:
        odd = os.path.exists(word) and not os.access(word, os.R_OK)
        folder = isinstance(one.what, Argument) and not one.what.dir_okay and os.path.isdir(word)
        return None if odd or folder else Path(word)
    if one.kind is int:
        least, most = (one.what.min, one.what.max) if isinstance(one.what, Option) else (None, None)
        if not (word.isascii() and word.isdecimal()) or len(word) > 9:
            return None
        number = int(word)
        return number if (least is None or number >= least) and (most is None or number <= most) else None
    return word if one.kind is str else None
