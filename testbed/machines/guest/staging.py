"""The folder into which a guest writes: a new one for each guest in the user's cache, removed at its end."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from testbed.machines import home, trusted


def parent() -> Path:
    """Return the folder that contains them."""
    return home.cache() / "guests"


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a new folder, and remove those that killed processes have left."""
    top = trusted.folder(parent())
    alone = trusted.opened(top)
    try:
        flock(alone, LOCK_EX)
        _sweep(top)
        made = Path(tempfile.mkdtemp(dir=top))
        lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        flock(lock, LOCK_EX)
    finally:
        os.close(alone)
    try:
        yield made
    finally:
        discard(made)
        os.close(lock)


def _sweep(top: Path) -> None:
    for other in top.iterdir():
        with suppress(OSError):  # another process removes it
            lock = _opened(other)
            try:
                flock(lock, LOCK_EX | LOCK_NB)
                discard(other)
            finally:
                os.close(lock)


def discard(folder: Path, patience: float = float("inf")) -> None:
    """Remove a folder with untrusted content, however deep and wide it is, without following links in it.

    A process that still writes there could go on for ever: after `patience` seconds the rest is left.
    """
    with suppress(OSError):  # what QEMU, if it still runs, makes meanwhile goes with the next guest
        top = _opened(folder)
        try:
            _empty(top, time.monotonic() + patience)
        finally:
            os.close(top)
    with suppress(OSError):
        os.rmdir(folder)


def _opened(folder: Path | str, at: int | None = None) -> int:
    """Open a folder, whatever mode QEMU, which may be run as we are, has given it; OSError for what is none."""
    found = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        os.chmod(f"/proc/self/fd/{found}", 0o700)
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(found)


def _empty(top: int, until: float) -> None:
    """Remove what is in a folder; folders in folders are first moved up, so that no path becomes long.

    They get unpredictable names: a guest could have made others of the same names.
    """
    while (names := os.listdir(top)) and time.monotonic() < until:
        for name in names:
            try:
                inner = _opened(name, top)
            except NotADirectoryError:
                os.unlink(name, dir_fd=top)
                continue
            try:
                with os.scandir(inner) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            os.close(_opened(entry.name, inner))  # only what may be written to can be moved
                            os.rename(entry.name, f".{secrets.token_hex(8)}", src_dir_fd=inner, dst_dir_fd=top)
                        else:
                            os.unlink(entry.name, dir_fd=inner)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)
