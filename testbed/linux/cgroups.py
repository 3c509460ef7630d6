"""Control groups, version 2 or 1: find where a lab can have some, let its processes in, and remove them.

A cgroup is a directory that stays after its last process has ended. `sweep` removes it: from a process outside the
lab that waits for the lab's end (`sandbox.launch`), and at every `down`.
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
    """The folders that can hold cgroups for a process's children: one for each v1 controller, one for all of v2."""

    separate: Mapping[str, Path]
    unified: Path | None
    together: frozenset[str]


def doors(holder: int) -> list[int]:
    """Return descriptors of a lab's cgroups: a process that writes 0 to one enters that cgroup.

    There are none where a user may not move a process out of a session that systemd does not delegate.
    """
    descriptors = []
    for folder in _folders(_rows(f"/proc/{holder}/cgroup")):
        if folder.name.startswith(PREFIX):
            with suppress(OSError):
                descriptors.append(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    return descriptors


def sweep(groups: Groups, patience: float = 0.0) -> None:
    """Remove the cgroups of labs that have ended."""
    deadline = time.monotonic() + patience
    for folder in {*groups.separate.values(), *filter(None, (groups.unified,))}:
        with suppress(OSError):  # somebody removed the folder itself
            for name in os.listdir(folder):
                while name.startswith(PREFIX) and not _removed(folder / name) and time.monotonic() < deadline:
                    time.sleep(0.02)  # what has just ended is not yet reaped, and nothing announces that


def _removed(folder: Path) -> bool:
    """Remove a cgroup without live processes; return False while it still holds dead ones."""
    try:
        folder.rmdir()
    except OSError as e:
        with suppress(OSError):
            return e.errno != errno.EBUSY or (folder / "cgroup.procs").read_bytes() != b""
    return True


def find(table: str = "/proc/self/cgroup") -> Groups:
    """Return where this user may make cgroups for the children of a process (/proc/PID/cgroup)."""
    rows = _rows(table)
    separate = {}
    for key in CONTROLLERS:
        if key in rows:
            own = ROOT / key / rows[key].lstrip("/")
            folder = own.parent if own.name.startswith(PREFIX) else own
            if os.access(folder, os.W_OK):
                separate[key] = folder
    best, together = None, frozenset[str]()
    base = next((b for b in (ROOT, ROOT / "unified") if (b / "cgroup.controllers").exists()), None)
    if base is not None and "" in rows:
        # In v2 a cgroup that gives its children controllers has no processes itself: it is usually our parent.
        for folder in _upwards(base / rows[""].lstrip("/"), base):
            with suppress(OSError):
                offered = set((folder / "cgroup.subtree_control").read_text().split())
                if os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK):
                    useful = frozenset(offered & set(CONTROLLERS) - set(separate))
                    if len(useful) > len(together):
                        best, together = folder, useful
    return Groups(separate, best, together)


def _upwards(own: Path, base: Path) -> Iterator[Path]:
    for folder in (own, *own.parents):
        if not folder.name.startswith(PREFIX):
            yield folder
        if folder == base:
            return


def _rows(table: str) -> dict[str, str]:
    """Return the cgroup of a process in each hierarchy: keyed by controller for v1, by "" for v2."""
    rows: dict[str, str] = {}
    with suppress(OSError):
        for row in Path(table).read_text().splitlines():
            _, controllers, path = row.split(":", 2)
            rows |= dict.fromkeys(controllers.split(","), path)
    return rows


def _folders(rows: Mapping[str, str]) -> Iterable[Path]:
    """Return the folders of a process's cgroups; v2 may be mounted at two places."""
    for key, path in rows.items():
        if key in CONTROLLERS:
            yield ROOT / key / path.lstrip("/")
        elif key == "":
            yield from (base / path.lstrip("/") for base in (ROOT, ROOT / "unified"))
