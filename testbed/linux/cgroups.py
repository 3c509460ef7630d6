"""Control groups (v2, or v1): where a lab's can be, how its processes enter them, and who removes them.

A cgroup is a directory, which the kernel does not remove with the last process in it. `sweep` does: in a process
outside of the lab that waits for its end (`sandbox.launch`), and at every `down`.
Source: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/cgroups.rst.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "pids", "cpu")
PREFIX = "testbed-"


class Groups(NamedTuple):  # and no Struct: `testbed exec` waits for no library
    """Where cgroups for a process's children can be: a folder for each v1 controller, and one of v2 for several."""

    separate: Mapping[str, Path]
    unified: Path | None
    together: frozenset[str]


def doors(holder: int) -> list[int]:
    """Return descriptors of the cgroups of a lab, through which a process enters them by writing 0.

    A user who is in a session that systemd does not delegate may not move a process out of it: there are none then.
    """
    found = []
    for folder in _folders(_rows(f"/proc/{holder}/cgroup")):
        if folder.name.startswith(PREFIX):
            with suppress(OSError):
                found.append(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    return found


def sweep(groups: Groups, patience: float = 0.0) -> None:
    """Remove the cgroups of labs that have ended."""
    deadline = time.monotonic() + patience
    for place in {*groups.separate.values(), *filter(None, (groups.unified,))}:
        with suppress(OSError):  # somebody took the place itself away
            for name in os.listdir(place):
                while name.startswith(PREFIX) and not _removed(place / name) and time.monotonic() < deadline:
                    time.sleep(0.02)  # what ended a moment ago is not yet reaped: nothing tells when that is


def _removed(folder: Path) -> bool:
    """Remove a cgroup that nothing lives in; False when only what has ended is still in it."""
    try:
        folder.rmdir()
    except OSError as e:
        with suppress(OSError):
            return e.errno != errno.EBUSY or (folder / "cgroup.procs").read_bytes() != b""
    return True


def find(table: str = "/proc/self/cgroup") -> Groups:
    """Return where the kernel lets this user make cgroups for the children of a process (/proc/PID/cgroup)."""
    rows = _rows(table)
    separate = {}
    for key in CONTROLLERS:
        if key in rows:
            own = ROOT / key / rows[key].lstrip("/")
            place = own.parent if own.name.startswith(PREFIX) else own
            if os.access(place, os.W_OK):
                separate[key] = place
    best, together = None, frozenset[str]()
    base = next((b for b in (ROOT, ROOT / "unified") if (b / "cgroup.controllers").exists()), None)
    if base is not None and "" in rows:
        # A cgroup with controllers of its children has no processes of its own, so it is mostly one above ours.
        for place in _upwards(base / rows[""].lstrip("/"), base):
            with suppress(OSError):
                offered = set((place / "cgroup.subtree_control").read_text().split())
                if os.access(place, os.W_OK) and os.access(place / "cgroup.procs", os.W_OK):
                    useful = frozenset(offered & set(CONTROLLERS) - set(separate))
                    if len(useful) > len(together):
                        best, together = place, useful
    return Groups(separate, best, together)


def _upwards(own: Path, base: Path) -> Iterator[Path]:
    for place in (own, *own.parents):
        if not place.name.startswith(PREFIX):
            yield place
        if place == base:
            return


def _rows(table: str) -> dict[str, str]:
    """Return the cgroup of a process in each hierarchy: by controller in v1, by "" in v2."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for row in Path(table).read_text().splitlines():
            _, controllers, path = row.split(":", 2)
            found |= dict.fromkeys(controllers.split(","), path)
    return found


def _folders(rows: Mapping[str, str]) -> Iterable[Path]:
    """Return the folders of a process's cgroups, those of v2 below both places where it is mounted."""
    for key, path in rows.items():
        if key in CONTROLLERS:
            yield ROOT / key / path.lstrip("/")
        elif key == "":
            yield from (base / path.lstrip("/") for base in (ROOT, ROOT / "unified"))
