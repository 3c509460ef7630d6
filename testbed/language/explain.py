"""Explain the errors of a validator in plain sentences with their positions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from reprlib import repr as shorten
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from testbed.errors import SHOWN, Problem
from testbed.language.document import Document, Mark, Path, get

# Comparing two words takes the product of their lengths: no name is longer, and more names are told apart by an index.
_LONG, _MANY = 64, 200
_LIST = "a list ([...], or a line `- ...` for each item)"
_WANTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": _LIST,
    "list_type": _LIST,
    "dict_type": "a mapping (`key: value`)",
    "model_type": "a mapping (`key: value`)",
}
# Keys of other tools, for what this language does not have.
_VLANS = "there are no VLANs: make them with `commands`, as in `ip link add link eth0 name eth0.3 type vlan id 3`"
_OUTSIDE = "a lab has no way out of it: a program inside it is the server that the file needs"
_AIR = "stations join an access point: there are no mesh or ad-hoc networks"
_ABSENT: Mapping[str, str] = {
    **dict.fromkeys(("vlan", "vlans", "vlan_filtering", "trunk"), _VLANS),
    **dict.fromkeys(("uplink", "internet", "nat", "external"), _OUTSIDE),
    **dict.fromkeys(("mesh", "adhoc", "ad_hoc", "ibss"), _AIR),
    **dict.fromkeys(("roam", "roaming"), "a station does not roam: an access point has an SSID of its own"),
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def problems(document: Document, model: type[BaseModel], errors: Iterable[Any], extra: Sequence[str]) -> list[Problem]:
    """Return the errors of validating a document as problems; `extra` are keys of its top level beside the model's.

    Only the first hundred have hints, which are what takes time.
    """
    located = [(error, _locate(document.data, tuple(error["loc"]))) for error in errors]
    absent = {path for error, path in located if error["type"] == "missing"}
    misspelt = [path for error, path in located if error["type"] == "extra_forbidden" and path[:-1] in absent]
    meant = {(*path[:-1], close(str(path[-1]), fields_at(model, path[:-1], extra))) for path in misspelt}
    above = {path[:n] for _, path in located for n in range(len(path))}
    found: dict[Path, Problem] = {}
    for error, path in located:
        kind, last = error["type"], error["loc"][-1]
        if kind == "extra_forbidden":
            hint = "" if len(found) > SHOWN else _unknown(model, path, fields_at(model, path[:-1], extra))
            if hint in _ABSENT.values() and any(p.hint == hint for p in found.values()):
                continue  # what the language does not have is said once
            problem = document.at(path, key=True).problem(f"unknown key {path[-1]!r}", hint)
        elif kind == "missing":
            path = (*path, last)
            what = f"the key {last!r} is" if isinstance(last, str) else f"item {last + 1} of {_called(path[:-1])} is"
            problem = document.at(path[:-1], key=True).problem(f"{what} missing")
            if path in meant:
                continue  # it is there, misspelt, and that is said
        elif kind == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]:
            continue  # it has items enough, but with faults of their own
        elif kind in _WANTED and path in above:
            continue  # of several types that it may have, it has that of the deeper error
        else:
            written = error["input"]
            mark = document.at(path, key=written is None or isinstance(written, dict | list))
            problem = mark.problem(*_sentence(error, path, mark, model))
        found.setdefault(path, problem)
    return list(found.values())


def _unknown(model: type[BaseModel], path: Path, known: list[str]) -> str:
    """Return where an unknown key belongs, what it may mean, or which keys are allowed."""
    word, here = str(path[-1]), path[:-1]
    if (sentence := _ABSENT.get(word)) is not None:
        return sentence
    below = [k for k in known if word in fields_at(model, (*here, k))]
    if below:
        return f"it belongs under {' or '.join(f'`{k}`' for k in below)}"
    if here and word in fields_at(model, here[:-1]):
        return "it belongs one level up"
    return suggest(word, known) or (f"known keys: {', '.join(known)}" if known else "no keys are allowed here")


def _sentence(error: Any, path: Path, mark: Mark, model: type[BaseModel]) -> tuple[str, str]:
    """Return what is wrong with a value, and a hint."""
    kind, context, got, name = error["type"], error.get("ctx", {}), error["input"], _called(path)
    if kind == "value_error":
        return str(context["error"]), ""
    shown = _shown(got, mark)
    if kind == "literal_error":
        words = re.findall(r"'([^']+)'", context["expected"])
        wanted = " or ".join(words) if len(words) < 3 else f"one of {', '.join(words)}"
        return f"{name} must be {wanted}, not {shown}", suggest(str(got), words)
    if kind in _BOUNDS:
        key, bound = _BOUNDS[kind]
        return f"{name} must be {bound} {context[key]:g}, not {shown}", ""
    if kind == "too_short":
        return f"{name} must have at least {context['min_length']} item, and it is empty", ""
    if kind == "too_long":
        count = len(got) if isinstance(got, dict | list) else context["actual_length"]
        return f"{name} has at most {context['max_length']} items, and this has {count}", ""
    if kind in ("string_too_short", "string_too_long"):
        few = kind == "string_too_short"
        bound = f"at least {context['min_length']}" if few else f"at most {context['max_length']}"
        return f"{name} must have {bound} characters, and this has {len(got)}", ""
    if kind in _WANTED:
        wanted = _WANTED[kind]
        if "number" in wanted and isinstance(got, str) and re.match(r"[0-9.]+[a-z%]", got):
            wanted += " without a unit"
        return f"{name} must be {wanted}, not {shown}", _cure(kind, path, mark, got, model)
    return f"{name}: {error['msg']}, not {shown}", ""


def _cure(kind: str, path: Path, mark: Mark, got: Any, model: type[BaseModel]) -> str:
    """Return how to correct a value of the wrong type, as far as that can be guessed."""
    if kind == "string_type" and isinstance(got, bool | int | float):
        return f'write "{mark.text or got}"'
    if kind == "string_type" and isinstance(got, dict) and len(got) == 1:
        pair = ":".join(str(word) for word in (*got.keys(), *got.values()))
        return f"a colon and a space make a mapping: write {pair}"
    if kind == "string_type" and isinstance(got, list) and all(isinstance(v, str | int) for v in got):
        return f'write "{" ".join(map(str, got))}"'
    if kind == "tuple_type" and isinstance(got, str) and re.fullmatch(r"[\w:./* -]{1,60}", got):
        return f"write [{', '.join(got.split())}]"
    if kind == "model_type" and (known := fields_at(model, path)):
        return f"keys: {', '.join(known)}"
    return "write {}" if kind == "model_type" else ""


def _called(path: Path) -> str:
    if not path:
        return "the file"
    last = path[-1]
    return f"`{last}`" if isinstance(last, str) else f"item {last + 1} of {_called(path[:-1])}"


def _shown(got: Any, mark: Mark) -> str:
    if isinstance(got, dict | list):
        return "a mapping" if isinstance(got, dict) else "a list"
    if got is None:
        return "empty"
    return shorten(got) if isinstance(got, str) else mark.text or repr(got)


def _locate(data: Any, location: tuple[Any, ...]) -> Path:
    """Return a pydantic location as a path in the data, without the names of a union's branches."""
    path: Path = ()
    for part in location:
        here = get(data, path)
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and part in range(len(here))):
            path = (*path, part)
    return path


def fields_at(model: Any, path: Path, extra: Sequence[str] = ()) -> list[str]:
    """Return the keys that a model knows at a path, with the extra ones of its top level."""
    kinds = [model]
    for part in path:
        kinds = [deeper for kind in kinds for deeper in _below(kind, part)]
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    found = [f.alias or name for kind in models for name, f in kind.model_fields.items()]
    return found if path else [*found, *extra]


def _below(kind: Any, part: str | int) -> list[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        found = [f.annotation for name, f in kind.model_fields.items() if (f.alias or name) == part]
    elif get_origin(kind) is dict:
        found = [get_args(kind)[1]]
    elif get_origin(kind) in (tuple, list):
        found = [a for a in get_args(kind) if a is not Ellipsis]
    else:
        found = []
    return [flat for f in found for flat in flatten(f)]


def flatten(kind: Any) -> list[Any]:
    """Return the types that an annotation allows, without None."""
    if get_origin(kind) is Annotated:
        return flatten(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [flat for arg in get_args(kind) if arg is not NoneType for flat in flatten(arg)]
    return [kind]


class Names(dict[str, None]):
    """Many names in their order, prepared for repeated searches for one that is close."""

    @cached_property
    def near(self) -> dict[str, str]:
        """Return names by what is left of them without one letter."""
        found: dict[str, str] = {}
        for name in self:
            for part in _shorter(name):
                found.setdefault(part, name)
        return found


def name_set(found: Iterable[str]) -> Names:
    """Prepare names for repeated searches; a name that is there twice counts once."""
    return Names(dict.fromkeys(found))


def _shorter(word: str) -> Iterator[str]:
    yield word
    yield from (word[:n] + word[n + 1 :] for n in range(len(word)))


def close(word: str, known: Iterable[str]) -> str:
    """Return the closest known word, "" if none is close; among very many, only one that differs by a letter."""
    if len(word) > _LONG:
        return ""
    if isinstance(known, Names) and len(known) > _MANY:
        near = known.near
        return next((near[part] for part in _shorter(word) if part in near), "")
    return next(iter(get_close_matches(word, list(islice(known, _MANY)), 1, 0.6)), "")


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" if a known word is close, else ""."""
    found = close(word, known)
    return f"did you mean {found!r}?" if found else ""
