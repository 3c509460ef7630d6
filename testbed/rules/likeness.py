"""What two cases of one file have in common, which need not be judged twice (pure)."""

from __future__ import annotations

from testbed.language.topology import SHAPES, Link, Topology


def reshaped(topology: Topology, like: Topology) -> list[int] | None:
    """Return the links that are shaped differently when that is all that differs between two topologies, else None."""
    same = (_same(getattr(topology, key), getattr(like, key)) for key in Topology.model_fields if key != "links")
    if len(topology.links) != len(like.links) or not all(same):
        return None
    found = [n for n, (link, old) in enumerate(zip(topology.links, like.links, strict=True)) if link is not old]
    plugs = (
        (getattr(topology.links[n], key), getattr(like.links[n], key))
        for n in found
        for key in Link.model_fields
        if key not in SHAPES
    )
    return found if all(new == old for new, old in plugs) else None


def _same(new: object, old: object) -> bool:
    """Say whether two parts of topologies are the same, or of the same objects."""
    if isinstance(new, dict) and isinstance(old, dict):
        return list(new) == list(old) and all(value is old[key] for key, value in new.items())
    if isinstance(new, tuple) and isinstance(old, tuple):
        return len(new) == len(old) and all(a is b for a, b in zip(new, old, strict=True))
    return new is old or new == old
