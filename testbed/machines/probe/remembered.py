"""Features that were found present, remembered for one boot, because a probe costs as much as a small lab.

A positive finding is valid while everything that it depends on is unchanged: the module is loaded, the sysctl has that
value, the program is that file. A negative one is never kept: modprobe, apt-get or an administrator may cure it at any
moment, and only a probe notices. What the kernel refuses all the same is probed again (`start`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from testbed import __version__
from testbed.errors import InputError, LabError
from testbed.features import Feature
from testbed.machines import home, trusted
from testbed.machines.probe.programs import which


def recall(wanted: Iterable[Feature]) -> dict[Feature, str]:
    """Return which of some features are known to be present, and how that was known."""
    file = _file()
    entries = {} if file is None else _read(file, _key())
    return {
        f: str(entries[f.name]["known"]) for f in wanted if f.name in entries and entries[f.name]["on"] == _state(f)
    }


def keep(present: Mapping[Feature, str], absent: Iterable[Feature]) -> None:
    """Remember what was found present and forget what was not; without a writable folder, it is probed each time."""
    if (file := _file()) is None:
        return
    key = _key()
    before = _read(file, key)
    gone = {f.name for f in absent}
    after = {name: entry for name, entry in before.items() if name not in gone}
    after |= {f.name: {"known": known, "on": _state(f)} for f, known in present.items()}
    if after != before:
        with suppress(OSError):
            _write(file, json.dumps({"key": key, "found": after}))


def _file() -> Path | None:
    """Return the file of this boot, None if there can't be one."""
    with suppress(OSError, InputError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return home.cache() / f"features-{boot}.json"
    return None


def _key() -> dict[str, object]:
    """Return what all findings depend on: the kernel, this program, and the rights of this process."""
    rows = Path("/proc/self/status").read_text().splitlines()
    probes = max(f.stat().st_mtime_ns for f in Path(__file__).parent.glob("*.py"))
    return {
        "kernel": os.uname().release,
        "testbed": f"{__version__} {probes}",
        "uid": os.geteuid(),
        "user namespace": os.stat("/proc/self/ns/user").st_ino,
        "capabilities": next((r.partition(":")[2].strip() for r in rows if r.startswith("CapEff:")), ""),
    }


def _state(feature: Feature) -> dict[str, Any]:
    """Return the present state of what a finding depends on: a sysctl's value, a folder, a file's time and size."""
    paths = [*feature.rests_on, *filter(None, (feature.program and which(feature.program),))]
    return {path: _look(path) for path in paths}


def _look(path: str) -> Any:
    try:
        if path.startswith("/proc/"):
            return Path(path).read_text()
        found = os.stat(path)
    except OSError:
        return None
    return "a folder" if os.path.isdir(path) else [found.st_mtime_ns, found.st_size]


def _read(file: Path, key: Mapping[str, object]) -> dict[str, Any]:
    """Return the entries of a file; none if it is missing, incomplete, or writable by another user."""
    try:
        content = json.loads(trusted.read(file))
    except (OSError, ValueError, LabError):
        return {}
    if not isinstance(content, dict) or content.get("key") != key or not isinstance(content.get("found"), dict):
        return {}
    return {n: e for n, e in content["found"].items() if isinstance(e, dict) and {"known", "on"} <= e.keys()}


def _write(file: Path, text: str) -> None:
    """Replace the file atomically, and remove those of earlier boots."""
    _folder(file.parent)
    new = file.with_suffix(f".{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w") as out:
            out.write(text)
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    for other in file.parent.glob("features-*"):
        if not other.name.startswith(f"{file.stem}."):
            other.unlink(missing_ok=True)


def _folder(wanted: Path) -> None:
    """Make a folder, but not in another user's: `sudo` may keep HOME, where files of root would block the user."""
    nearest = next(p for p in (wanted, *wanted.parents) if p.exists())
    if nearest.stat().st_uid != os.geteuid():
        raise PermissionError(f"{nearest} belongs to somebody else")
    wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
