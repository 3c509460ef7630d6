"""Guests that were booted once and saved: folders beside the image, named by everything that they depend on.

The folder has QEMU's device state and the guest's memory as a file. A restored guest maps that file privately, so
nothing is read at the start, and guests share what they do not write. Its `code` is the digest of the sources that its
command line has imported. With other sources it works, but imports them at each start, which takes an emulated
processor ten seconds. So it is used once with sources that differ (they are being edited), and saved again when the
same ones are used a second time.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from testbed.machines.trusted import RECORD, Opened, lock, read, verified, write

FILES = ("ram", "state")
_KEPT = 4  # of other sizes, or of a QEMU that was since replaced; each is some 300 MB


def find(beside: Path, digest: str, code: str) -> Path | None:
    """Return the saved guest of a digest; None if it was already used once with these sources, which it lacks."""
    folder = beside / f"saved-{digest}"
    imported = _text(folder / "code")
    if imported is None:
        return None
    if code in ("", imported):
        return folder
    if _text(folder / "met") == code:
        return None
    with suppress(OSError):  # where nothing can be written, none could be saved either: this one serves
        write(folder / "met", code)
    return folder


def opened(folder: Path) -> Opened:
    """Open the files of a saved guest, and compute their digests again if the files have changed."""
    known = (folder / RECORD).exists()  # else nothing says that they are what was saved
    found = verified(folder, FILES, {})
    return found if known else Opened(found.files, FILES)


def _text(file: Path) -> str | None:
    with suppress(FileNotFoundError):
        return read(file).decode(errors="replace")
    return None


def make(beside: Path, digest: str, code: str, fill: Callable[[Path], None], waits: Callable[[], None]) -> Path:
    """Return a saved guest, made by `fill` if there is none; `waits` is called if another process is making it.

    It is made under another name, so that an interrupted one is never taken for a complete one.
    """
    with _alone(beside / f".saved-{digest}.lock", waits):
        if (found := find(beside, digest, code)) is not None:
            return found
        for left in beside.glob(f".saved-{digest}-*"):
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".saved-{digest}-", dir=beside))
        try:
            fill(work)
            write(work / "code", code)
            target = beside / f"saved-{digest}"
            with suppress(FileNotFoundError):
                remove(target)
            work.rename(target)
            for old in sorted(beside.glob("saved-*"), key=lambda f: f.stat().st_mtime)[:-_KEPT]:
                remove(old)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return target


def remove(folder: Path) -> None:
    """Remove a saved guest; guests that were restored from it keep its memory."""
    gone = folder.with_name(f".{folder.name}-gone-{os.getpid()}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _alone(file: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Hold a lock, which ends with this process at the latest."""
    fd = lock(file)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
