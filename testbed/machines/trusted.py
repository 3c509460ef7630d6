"""Files that are run, restored or removed with our rights: they are ours or root's, and nobody else can change them.

Owner, mode and every folder above are looked at on descriptors, from the root down, each opened in the one before,
and without following a link: what was looked at is what is used. A digest is computed only of what has changed since.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from typing import Any

from msgspec import Struct

from testbed.errors import LabError

RECORD = ".verified.json"  # in a folder: what its files were when their digests were last computed
_LINKS = 40  # as many as the kernel follows (fs/namei.c: MAXSYMLINKS)
_BLOCK = 1 << 20


class Opened(Struct, frozen=True):
    """Files of a folder as descriptors, and the names of those that have changed."""

    files: Mapping[str, int]
    damaged: tuple[str, ...] = ()

    def close(self) -> None:
        """Close them."""
        for fd in self.files.values():
            os.close(fd)


def opened(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file or a folder that nobody else can change; LabError says who can, FileNotFoundError that there is none.

    The descriptor is none of the standard streams.
    """
    at = _walk(path)
    try:
        return _high(os.open(f"/proc/self/fd/{at}", flags | os.O_CLOEXEC))  # the same inode, with these rights
    finally:
        os.close(at)


def folder(path: Path) -> Path:
    """Return a folder that nobody else can change, made with all above it if there is none."""
    if missing := [p for p in (path, *path.parents) if not p.exists()]:
        os.close(_walk(missing[-1].parent))  # first: a link of somebody else's could lead anywhere
        for one in reversed(missing):
            with suppress(FileExistsError):  # another process was faster
                one.mkdir(mode=0o755)
    os.close(opened(path))
    return path


def read(path: Path, most: int = 1 << 22) -> bytes:
    """Return the content of a small file that no other user can change."""
    fd = opened(path)
    try:
        return os.pread(fd, most, 0)
    finally:
        os.close(fd)


def write(path: Path, text: str) -> None:
    """Write a small file that no other user can change, whatever the umask is."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o644), "w") as file:
        file.write(text)


def lock(path: Path) -> int:
    """Open a lock file, made if there is none, in a folder that nobody else can change."""
    folder(path.parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except OSError as e:
        raise LabError(f"{path}: it can't be locked: {e.strerror}; remove it") from e


def verified(home: Path, names: Iterable[str], digests: Mapping[str, str]) -> Opened:
    """Open files of a folder, and compute the digest of each that has changed since that was last done.

    Compare it to `digests`, else to the last one; without either, a file is taken as it is.
    """
    before = _record(home)
    files = {name: opened(home / name) for name in names}
    after = {name: before[name] for name in before if name in files}
    damaged = []
    for name, fd in files.items():
        known = before.get(name, {})
        if known.get("state") == _state(fd):
            continue
        found = digest(fd) if name in digests else _sparsely(fd)
        if found == digests.get(name, known.get("sha256", found)):
            after[name] = {"state": _state(fd), "sha256": found}
        else:
            damaged.append(name)
    if after != before and not damaged:
        _write(home, after)
    return Opened(files, tuple(damaged))


def remember(home: Path, names: Iterable[str]) -> None:
    """Record the present files of a folder as the right ones: they were just made."""
    (home / RECORD).unlink(missing_ok=True)
    verified(home, names, {}).close()


def digest(fd: int) -> str:
    """Return the SHA-256 of a file's content."""
    with open(f"/proc/self/fd/{fd}", "rb") as whole:
        return hashlib.file_digest(whole, "sha256").hexdigest()


def _sparsely(fd: int) -> str:
    """Return the SHA-256 of a file's blocks that are not holes, and their offsets: most of a saved memory is holes."""
    size = os.fstat(fd).st_size
    summed = hashlib.sha256(b"%d\n" % size)
    zeros, at = bytes(_BLOCK), 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA) // _BLOCK * _BLOCK
        except OSError:  # ENXIO: nothing but a hole follows
            break
        block = os.pread(fd, _BLOCK, at)
        if block != zeros[: len(block)]:
            summed.update(b"%d\n" % at + block)
        at += _BLOCK
    return summed.hexdigest()


def _walk(path: Path) -> int:
    """Return a descriptor (O_PATH) of a file or folder after checking every folder on its path."""
    rest = list(reversed(Path(os.path.abspath(path)).parts[1:]))
    at = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(at, path)
        links = 0
        while rest:
            found = os.open(rest.pop(), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            try:
                _check(found, path)
                if stat.S_ISLNK(os.fstat(found).st_mode):
                    links += 1
                    if links > _LINKS:
                        raise LabError(f"{path}: there are too many symbolic links on the way to it")
                    target = os.readlink("", dir_fd=found)
                    rest += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                    if target.startswith("/"):
                        os.close(found)
                        found = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    else:
                        at, found = found, at
                at, found = found, at
            finally:
                os.close(found)
    except BaseException:
        os.close(at)
        raise
    return at


def _check(fd: int, path: Path) -> None:
    """Raise LabError if another user owns a file or folder or may change it."""
    found = os.fstat(fd)
    where = os.readlink(f"/proc/self/fd/{fd}")
    mode = stat.S_IMODE(found.st_mode)
    cure = (
        f"`chown` and `chmod go-w {where}` cure that if you trust what is there; XDG_CACHE_HOME names another cache, "
        "and XDG_CONFIG_HOME another list of machines"
    )
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        raise LabError(f"{path}: {where} is neither a file nor a folder")
    if found.st_uid not in (0, os.geteuid()):
        raise LabError(f"{path} can't be trusted: {where} belongs to user {found.st_uid}, who could change it; {cure}")
    # In a folder that is sticky, others make files, and replace none of ours.
    shared = stat.S_ISDIR(found.st_mode) and mode & stat.S_ISVTX
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared and not stat.S_ISLNK(found.st_mode):
        who = "everybody" if mode & stat.S_IWOTH else f"group {found.st_gid}"
        raise LabError(f"{path} can't be trusted: {who} may write to {where} (mode {mode:o}); {cure}")


def _high(fd: int) -> int:
    """Return the descriptor with a number above the standard streams, which a caller may have closed."""
    if fd > 2:
        return fd
    try:
        return fcntl(fd, F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def _state(fd: int) -> list[int]:
    found = os.fstat(fd)
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _record(home: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError, ValueError):
        found = json.loads(read(home / RECORD))
        if isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values()):
            return found
    return {}


def _write(home: Path, record: Mapping[str, Any]) -> None:
    part = home / f"{RECORD}.{os.getpid()}"
    with suppress(OSError):  # an image that belongs to root: then it is computed each time
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(fd, "w") as file:
            json.dump(record, file)
        part.rename(home / RECORD)
