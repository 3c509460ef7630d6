"""What rules take and what they yield: what a file names, and faults at their places."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from msgspec import Struct

from testbed.language.topology import Topology


class Written(Struct, frozen=True):
    """The names in a file, including those of faulty parts, and the doubts: parts whose faults may cause others.

    Doubts are sections (`links`, `nodes`, `workloads` ...) and single nodes (`nodes.NAME`).
    """

    nodes: tuple[str, ...]
    workloads: tuple[str, ...]
    doubt: frozenset[str] = frozenset()


def there_are(names: Collection[object]) -> str:
    """Return a hint with the first of the names that there are."""
    found = [str(n) for n in islice(names, 8)]
    return f"there are: {', '.join(found)}{', ...' if len(names) > 8 else ''}" if found else "there are none"


def end_of_run(topology: Topology, doubt: set[str]) -> float | None:
    """Return when a run is over, None when that can't be known."""
    sound = all(w.kind() for w in topology.workloads.values())
    return topology.seconds() if sound and not doubt & {"workloads", "duration"} else None
