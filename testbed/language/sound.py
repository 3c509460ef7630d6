"""The data of a document for the validator: with empty parts filled in, or without its faulty parts (pure)."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from testbed.errors import InputError, Problem
from testbed.language.document import Document
from testbed.language.explain import flatten
from testbed.language.topology import SHAPES, Topology
from testbed.nodes.node import Node
from testbed.spec import Spec

_SECTIONS = ("nodes", "links", "workloads", "capture", "events", "checks")
_ROLES = [
    key
    for key, field in Node.model_fields.items()
    if any(isinstance(kind, type) and issubclass(kind, Spec) for kind in flatten(field.annotation))
]


class Built(Struct, frozen=True):
    """A document's data, and the topology that it states without its faulty parts."""

    data: dict[str, Any]
    topology: Topology


def mapping(document: Document) -> dict[str, Any]:
    """Return a document's data; raise InputError if it is not a mapping."""
    if isinstance(document.data, dict):
        return document.data
    mark = document.at(())
    if document.data is None:
        raise InputError(Problem("it is empty: a topology has at least `name:` and `nodes:`", mark.source.name))
    what = "a list" if isinstance(document.data, list) else "a text"
    message = f"a topology is a mapping, `key: value`, with at least `name` and `nodes`; this is {what}"
    raise InputError(mark.problem(message))


def filled(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data with empty nodes (`h1:`) as empty mappings."""
    nodes = data.get("nodes")
    if not isinstance(nodes, dict):
        return data
    # A role written without content (`router:`) is the role with its defaults.
    found = {
        name: {}
        if node is None
        else {k: {} if v is None and k in _ROLES else v for k, v in node.items()}
        if isinstance(node, dict)
        else node
        for name, node in nodes.items()
    }
    return {**data, "nodes": found}


def reused(data: dict[str, Any], like: Built) -> dict[str, Any]:
    """Return the data with models of `like` instead of the equal data that they were made from."""
    found = dict(data)
    for section in _SECTIONS:
        new, old, made = data.get(section), like.data.get(section), getattr(like.topology, section)
        if new is None:
            continue
        if new is old:
            found[section] = made
        elif isinstance(new, dict) and isinstance(old, dict):
            found[section] = {k: made[k] if k in old and v is old[k] else v for k, v in new.items()}
        elif isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
            found[section] = [made[n] if v is old[n] else v for n, v in enumerate(new)]
    return found


def sound(
    data: dict[str, Any], locations: list[tuple[Any, ...]]
) -> tuple[dict[str, Any], dict[str, list[int]], frozenset[str]]:
    """Return the data without its faulty parts, the original index of each item left in a list, and the doubts.

    What other parts refer to is kept as far as possible: a node without its faulty roles, a link without its shaping.
    """
    bad: dict[str, dict[Any, set[Any]]] = {}
    for loc in locations:
        bad.setdefault(loc[0], {}).setdefault(loc[1] if len(loc) > 1 else None, set()).add(loc[2] if loc[2:] else None)
    good: dict[str, Any] = {"name": "unnamed", "nodes": {}}
    kept: dict[str, list[int]] = {}
    doubt = {"nodes", "links", "workloads"} if set(bad) - set(Topology.model_fields) else set()
    for section, value in data.items():
        faulty = bad.get(section, {})
        if not faulty:
            good[section] = value
        elif None in faulty:
            doubt.add(section)
        elif isinstance(value, dict) and section == "nodes":
            good[section] = {name: _without(node, faulty.get(name, set())) for name, node in value.items()}
            unsure = {f"{section}.{name}" for name, keys in faulty.items() if keys - {"sysctl", "commands"}}
            doubt |= {section, *unsure} if unsure else set()
        elif isinstance(value, dict):
            good[section] = {k: v for k, v in value.items() if k not in faulty}
            doubt.add(section)
        elif section == "links":
            whole = {n for n, keys in faulty.items() if keys & {None, "ends", "name"}}
            kept[section] = [n for n in range(len(value)) if n not in whole]
            good[section] = [_without(value[n], faulty[n] | SHAPES if n in faulty else set()) for n in kept[section]]
            doubt |= {section} if whole else set()
        elif section in ("capture", "events", "checks"):
            kept[section] = [n for n in range(len(value)) if n not in faulty]
            good[section] = [value[n] for n in kept[section]]
    return good, kept, frozenset(doubt)


def _without(value: Any, keys: set[Any]) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k not in keys} if isinstance(value, dict) else {}
