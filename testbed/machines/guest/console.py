"""What a guest says on its console: a file of the keeper's with the first and the last of it, however much that is.

The file is as long as all that was said, so that places in it stay what they are; its middle is a hole.
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
    """The keeper's end of a console, or of another stream of a process that nobody vouches for."""

    source: socket.socket
    file: int
    head: int = HEAD
    tail: int = TAIL
    size: int = 0
    gone: int = 0  # where the hole ends

    def hear(self) -> bool:
        """Keep what has come, some of it; say whether there may be more."""
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
        """Return what is kept, with all that has come."""
        for _ in range(1024):  # a guest may say more all the time
            if not self.hear():
                break
        return text(self.file, self.head, self.tail)


def opened(source: socket.socket, path: Path, head: int = HEAD, tail: int = TAIL) -> Console:
    """Return a console that is kept in a new file."""
    return Console(source, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), head, tail)


def text(file: int, head: int = HEAD, tail: int = TAIL) -> bytes:
    """Return what is kept of a console, and how much is not."""
    size = os.fstat(file).st_size
    if size <= head + tail:
        return os.pread(file, size, 0)
    dropped = f"\n[testbed: {size - head - tail} bytes of this console were dropped here]\n".encode()
    return os.pread(file, head, 0) + dropped + os.pread(file, tail, size - tail)


def since(file: int, mark: int) -> bytes:
    """Return what was said after a place, as far as it is kept."""
    size = os.fstat(file).st_size
    return os.pread(file, TAIL, max(mark, size - TAIL))
