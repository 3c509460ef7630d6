"""Enforce a lab's bounds, by the size of its PID namespace and by cgroups (v2 or v1).

Sources: kernel/pid.c, Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from testbed.drivers.bound import Bound
from testbed.linux import cgroups
from testbed.metrics.records import Held

_CGROUP = "the cgroup "
_RESERVED = 300  # RESERVED_PIDS: the kernel gives out lower numbers only once
_PERIOD = 20_000  # us: the longest time that a lab waits for its next share of processors


def hold(name: str, bound: Bound) -> dict[str, Held]:
    """Apply bounds to this process, PID 1 of a lab, and to everything that it starts."""
    held = {key: Held(text) for key, text in bound.stated().items()}
    if bound.pids is not None and _own_numbers():
        _number(bound.pids)
        held["pids"].by = f"kernel.pid_max = {_RESERVED - 1 + bound.pids} of its PID namespace"
    groups = cgroups.find()
    label = f"{cgroups.PREFIX}{name}-{os.stat('/proc/self/ns/pid').st_ino}"
    wanted = [key for key, one in held.items() if not one.by]
    for key in wanted:
        folder = groups.separate.get(key)
        files = _v1(key, bound)
        if folder is None and groups.unified is not None and key in groups.together:
            folder, files = groups.unified, _v2(key, bound)
        if folder is None:
            held[key].unenforced = _why(key)
            continue
        try:
            _join(folder / label, files)
        except OSError as e:
            held[key].unenforced = f"{folder / label}: {e.strerror}"
            continue
        held[key].by = f"{_CGROUP}{folder / label}"
    return held


def felt(held: Mapping[str, Held]) -> dict[str, Held]:
    """Return bounds with the number of times that each took effect."""
    counts = {}
    for key, one in held.items():
        folder = Path(one.by.removeprefix(_CGROUP))
        counts[key] = replace(one, **_seen(key, folder)) if one.by.startswith(_CGROUP) else one
    return counts


def _own_numbers() -> bool:
    """Return whether each PID namespace has its own kernel.pid_max (Linux 6.14 and later)."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(c for c in minor if c.isdigit()))) >= (6, 14)


def _number(pids: int) -> None:
    """Limit a PID namespace to this many processes and threads, including its PID 1.

    Skip the numbers below RESERVED_PIDS, which the kernel would give out once on top of the limit.
    """
    Path("/proc/sys/kernel/pid_max").write_text(str(_RESERVED - 1 + pids))
    with suppress(OSError):  # a kernel without CONFIG_CHECKPOINT_RESTORE allows up to 298 more at a time
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(_RESERVED))


def _v1(key: str, bound: Bound) -> dict[str, str]:
    if key == "memory":
        # Memory, and memory with swap where that is counted: the first must never exceed the second.
        return {"memory.limit_in_bytes": str(bound.memory), "memory.memsw.limit_in_bytes": str(bound.memory)}
    if key == "pids":
        return {"pids.max": str(bound.pids)}
    return {"cpu.cfs_period_us": str(_PERIOD), "cpu.cfs_quota_us": str(round((bound.cpu or 0) * _PERIOD))}


def _v2(key: str, bound: Bound) -> dict[str, str]:
    if key == "memory":
        return {"memory.max": str(bound.memory), "memory.swap.max": "0"}
    return {"pids.max": str(bound.pids)} if key == "pids" else {"cpu.max": _cpu_max(bound)}


def _cpu_max(bound: Bound) -> str:
    return f"{round((bound.cpu or 0) * _PERIOD)} {_PERIOD}"


_OPTIONAL = ("memory.memsw.limit_in_bytes", "memory.swap.max")  # absent where swap is not counted


def _join(folder: Path, files: Mapping[str, str]) -> None:
    """Make a cgroup with these values and enter it; try again if a sweep removed it while it was empty."""
    for attempt in range(5):
        try:
            folder.mkdir(exist_ok=True)
            for file, value in files.items():
                if file not in _OPTIONAL or (folder / file).exists():
                    _set(folder / file, value, files)
            (folder / "cgroup.procs").write_text("0")
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.ENODEV) or attempt == 4:
                raise
        else:
            return


def _set(file: Path, value: str, files: Mapping[str, str]) -> None:
    try:
        file.write_text(value)
    except OSError:
        # Memory must not exceed memory with swap: when a bound grows, write the latter first.
        other = file.with_name("memory.memsw.limit_in_bytes")
        if file.name != "memory.limit_in_bytes" or not other.exists():
            raise
        other.write_text(files[other.name])
        file.write_text(value)


def _why(key: str) -> str:
    """Return why this machine cannot enforce a bound, and what helps."""
    kernel = "" if key != "pids" else "Linux 6.14 or later counts the processes of a lab by itself; else "
    if not cgroups.ROOT.is_dir() or not any(cgroups.ROOT.iterdir()):
        return f"{kernel}no cgroups are mounted at {cgroups.ROOT}"
    return (
        f"{kernel}no cgroup with the controller {key} is open to this user: run as root, or in one that systemd "
        f"delegates (`systemd-run --user --scope -p Delegate=yes`)"
    )


def _seen(key: str, folder: Path) -> dict[str, float]:
    """Return how often a bound took effect: processes killed for memory, seconds without a processor."""
    with suppress(OSError, ValueError):
        if key == "memory":
            file = folder / "memory.events"
            rows = _pairs(file if file.exists() else folder / "memory.oom_control")
            return {"killed": rows.get("oom_kill", 0)}
        if key == "cpu":
            rows = _pairs(folder / "cpu.stat")
            waited = rows.get("throttled_usec", rows.get("throttled_time", 0) // 1000)
            return {"throttled_s": waited / 1e6}
    return {}


def _pairs(file: Path) -> dict[str, int]:
    return {key: int(value) for key, value in (row.split() for row in file.read_text().splitlines())}
