"""Read a file that a command line or another file names: an ordinary one of bounded size, without leaving a folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST = 16 * 1024 * 1024  # bytes of a topology or an experiment
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def content(path: Path, most: int = MOST, root: Path | None = None) -> bytes:
    """Return a file's content; OSError, whose `strerror` says why, if it is not an ordinary file of that size.

    With `root`, a folder without links in its path, the file must be in it, whatever links are on the way.
    """
    # Without waiting: a pipe would have this process wait for somebody who writes, a terminal would become its own.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if kind := _KINDS.get(stat.S_IFMT(found.st_mode)):
            raise OSError(
                errno.EINVAL, f"it is {kind}, and must be an ordinary file: save its content in one", str(path)
            )
        # What was opened, not what the path leads to by now (proc_pid_fd(5)).
        if root is not None and root not in Path(os.readlink(f"/proc/self/fd/{fd}")).parents:
            raise OSError(errno.EXDEV, f"a link leads out of {root}: name the file that it leads to", str(path))
        data = bytearray()
        while len(data) <= most and (part := file.read(most + 1 - len(data))):
            data += part
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {_mib(most)}, the most that is read", str(path))
    return bytes(data)


def root_of(folder: Path, name: str) -> Path:
    """Return the folder that a file names by a path: its own, as far above as leading `..` say, or an absolute one."""
    if os.path.isabs(name):
        return Path(os.path.realpath(os.path.dirname(name)))
    depth = ups = 0
    for part in Path(name).parts:
        depth += -1 if part == ".." else 1
        ups = max(ups, -depth)
    found = Path(os.path.realpath(folder))
    return [found, *found.parents][min(ups, len(found.parents))]


def _mib(size: int) -> str:
    return f"{size // 1024 // 1024} MiB" if size >= 1024 * 1024 else f"{size} bytes"
