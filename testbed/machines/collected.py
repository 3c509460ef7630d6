"""Raw files of a run on another machine, on their way into its results folder here: nothing else comes, and bounded.

What a guest made is looked at on descriptors and never followed: regular files with one name, in folders. The copies
have owner and mode of any file that we make. Names that are ours in a results folder are not taken.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct, field

from testbed.errors import LabError
from testbed.plain import line
from testbed.results import DERIVED

FILES, BYTES, ENTRIES, DEPTH = 100_000, 16 << 30, 400_000, 2
ABOUT = "about.json"  # what the machine says of itself: not a file of results
_ABOUT = 1 << 20  # bytes of it
_INPUTS = ("topology.yaml", "experiment.yaml", "effective.yaml", "plan.txt", "plan.json", "manifest.json")
_OURS = {*_INPUTS, *DERIVED, "report.html", "console.log", "latest"}
_PART = 1 << 30
Copy = Callable[[int, int], None]  # to a descriptor, so many bytes


class Taken(Struct):
    """What has arrived in a results folder so far."""

    folder: Path
    files: int = 0
    size: int = 0
    about: bytes = b""
    left: dict[str, str] = field(default_factory=dict)  # what was not taken, and why; some of it

    def take(self, name: str, size: int, copy: Copy) -> bool:
        """Take one file by its name (parts with `/` between); return whether it was. LabError if it is too much."""
        parts = name.split("/")
        if why := refused(parts):
            self.leave(name, why)
            return False
        if parts[0] in _OURS or parts[0].startswith("."):
            return False
        self.files, self.size = self.files + 1, self.size + size
        if self.files > FILES or self.size > BYTES:
            what = f"more than {FILES} files" if self.files > FILES else f"more than {BYTES >> 30} GiB"
            raise LabError(f"the results are not whole: they are {what}, which is the most that is taken of a run")
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for part in parts[:-1]:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=folder)
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                os.close(folder)
                folder = inner
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            out = os.open(parts[-1], flags, 0o644, dir_fd=folder)
        except OSError as e:
            raise LabError(f"the results can't be written: {self.folder / line(name)}: {e.strerror}") from e
        finally:
            os.close(folder)
        try:
            copy(out, size)
        except OSError as e:
            raise LabError(f"the results can't be written: {self.folder / line(name)}: {e.strerror}") from e
        finally:
            os.close(out)
        return True

    def leave(self, name: str, why: str) -> None:
        """Remember what was not taken."""
        if len(self.left) < 10:
            self.left[line(name[:200])] = why


def refused(parts: list[str]) -> str:
    """Return why a name can't be that of a raw file, "" if it can."""
    if len(parts) > DEPTH:
        return "it is deeper than a node's files are"
    for part in parts:
        if not part or part in (".", "..") or len(os.fsencode(part)) > 255 or not part.isprintable():
            return "that is not a name of a file of results"
    return ""


def collect(source: Path, taken: Taken) -> None:
    """Take the raw files of a folder that a guest has written, or is still writing."""
    try:
        top = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError:
        taken.leave(source.name, "the folder can't be read")
        return
    try:
        for count, (name, fd) in enumerate(_files(top, "", taken)):
            if count > ENTRIES:
                raise LabError(f"the results are not whole: more than {ENTRIES} entries are in their folder")
            if fd >= 0:
                _one(name, fd, taken)
    finally:
        os.close(top)


def _files(folder: int, prefix: str, taken: Taken) -> Iterator[tuple[str, int]]:
    """Yield each entry by its name, with a descriptor if it is a file; those of the folders in it as well."""
    inner = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.name.startswith("."):
                yield name, -1  # of a file that was not finished, or of QEMU's own
                continue
            if entry.is_dir(follow_symlinks=False):
                inner.append(entry.name)
                yield name, -1
                continue
            fd = -1
            with suppress(OSError):  # a link, or it has gone
                fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            if fd < 0:
                taken.leave(name, "it is not a regular file")
            try:
                yield name, fd
            finally:
                if fd >= 0:
                    os.close(fd)
    for part in inner:
        name = f"{prefix}{part}"
        if name.count("/") + 1 >= DEPTH:
            taken.leave(name, "it is deeper than a node's files are")
            continue
        with suppress(OSError):
            fd = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                yield from _files(fd, f"{name}/", taken)
            finally:
                os.close(fd)


def _one(name: str, fd: int, taken: Taken) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or not _plain(fd):
        taken.leave(name, "it is not a regular file")
    elif found.st_nlink != 1:
        taken.leave(name, f"it has {found.st_nlink} names")
    elif name == ABOUT:
        taken.about = os.pread(fd, _ABOUT, 0)
    else:
        taken.take(name, found.st_size, lambda out, size: _copy(fd, out, size))


def _plain(fd: int) -> bool:
    """Return whether this is a regular file in the guest too: its links and devices are files with attributes here."""
    try:
        mode = int.from_bytes(os.getxattr(fd, "user.virtfs.mode"), "little")
    except OSError:  # it has none
        return True
    return stat.S_ISREG(mode)


def _copy(source: int, out: int, size: int) -> None:
    """Copy as many bytes as a file had when it was looked at; where the file system can, they are shared.

    A hole stays one: written out, it would fill a disk that the guest itself has not filled.
    """
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = min(size, os.lseek(source, at, os.SEEK_HOLE))
        except OSError:  # ENXIO: nothing but a hole follows, or it is shorter now
            break
        while at < end and (done := _part(source, out, at, min(end - at, _PART))):
            at += done
    os.ftruncate(out, min(size, os.fstat(source).st_size))


def _part(source: int, out: int, at: int, size: int) -> int:
    try:
        return os.copy_file_range(source, out, size, at, at)
    except OSError:  # other file systems, or one that can't
        os.lseek(out, at, os.SEEK_SET)
        return os.sendfile(out, source, at, size)
