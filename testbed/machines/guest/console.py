"""The console of a guest: a file of its keeper with the beginning and the end of the output, however long it is.

The file is as long as the whole output, so that offsets in it stay valid; its middle is a hole.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from testbed.linux import calls as linux

HEAD, TAIL = 256 << 10, 768 << 10  # bytes that are kept
_PART = 1 << 16


class Console(Struct, eq=False):
    """The keeper's end of a console, or of another stream of an untrusted process."""

    source: socket.socket
    file: int
    head: int = HEAD
    tail: int = TAIL
    size: int = 0
    gone: int = 0  # where the hole ends

    def hear(self) -> bool:
        """Keep some of what has arrived; return whether there may be more."""
        said = b""
        with suppress(BlockingIOError, ConnectionResetError):
            said = self.source.recv(_PART, socket.MSG_DONTWAIT)
        if not said:
            return False
        with suppress(OSError):  # no memory for it: then it is lost
            os.pwrite(self.file, said, self.size)
            self.size += len(said)
            if (end := self.size - self.tail) >= max(self.gone, self.head) + _PART:
                end -= end % _PART
                linux.punch(self.file, self.head, end - self.head)
                self.gone = end
        return True

    def text(self) -> bytes:
        """Return what is kept, including everything that has arrived by now."""
        for _ in range(1024):  # a guest may say more all the time
            if not self.hear():
                break
        return text(self.file, self.head, self.tail)


def opened(source: socket.socket, path: Path, head: int = HEAD, tail: int = TAIL) -> Console:
    """Return a console that writes to a new file."""
    return Console(source, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), head, tail)


def text(file: int, head: int = HEAD, tail: int = TAIL) -> bytes:
    """Return what is kept of a console, with a note on how much was dropped."""
    size = os.fstat(file).st_size
    if size <= head + tail:
        return os.pread(file, size, 0)
    dropped = f"\n[testbed: {size - head - tail} bytes of this console were dropped here]\n".encode()
    return os.pread(file, head, 0) + dropped + os.pread(file, tail, size - tail)


def since(file: int, mark: int) -> bytes:
    """Return the output after an offset, as far as it is kept."""
    size = os.fstat(file).st_size
    return os.pread(file, TAIL, max(mark, size - TAIL))
