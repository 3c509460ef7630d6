"""Lay one document over another: an experiment over its topology, or single values over a file (pure)."""

from __future__ import annotations

from collections import ChainMap
from typing import Any

from testbed.errors import InputError
from testbed.language.document import Document, Mark, Path, forget, get, inside


def merge(under: Document, over: Document) -> Document:
    """Lay one document over another: mappings merge by key, everything else is replaced, and positions are kept."""
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
    # What an alias or a `<<` stands for has no position of its own.
    found.values.setdefault(path, over.at(path))
    found.keys.setdefault(path, over.at(path, key=True))
    return value


def override(document: Document, dotted: str, value: Document, at: Mark, key: Mark) -> Document:
    """Return the document with one value set; paths name items of lists by name, end or number (`links.cable.loss`).

    `at` is where the value is written, `key` where its path is.
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
    # The positions of all other values are not copied: an experiment lays a thousand cases over one document.
    hidden: dict[Path, Any] = dict.fromkeys(inside(get(document.data, path), path))
    values, keys = ChainMap({**hidden, path: at}, document.values), ChainMap({**hidden, path: key}, document.keys)
    return Document(placed(document.data, path, value.data), values, keys)


def _names(items: list[Any]) -> dict[str, int]:
    """Return the names of a list's items in dotted paths: numbers, ends of links and, before these, `name`."""
    found = {str(n): n for n in range(len(items))}
    mappings = [(n, item) for n, item in enumerate(items) if isinstance(item, dict)]
    found |= {end: n for n, item in mappings for end in item.get("ends") or () if isinstance(end, str)}
    return found | {item["name"]: n for n, item in mappings if isinstance(item.get("name"), str)}


def placed(data: Any, path: Path, value: Any) -> Any:
    """Return data with another value at a path."""
    if not path:
        return value
    head, *rest = path
    if isinstance(data, list):
        return [placed(item, tuple(rest), value) if n == head else item for n, item in enumerate(data)]
    here = data if isinstance(data, dict) else {}
    return {**here, head: placed(here.get(head), tuple(rest), value)}
