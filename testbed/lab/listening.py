"""Who may talk to a holder or a keeper: its own user, known before a byte is read, and no more at once than fit."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator

from testbed.lab.messages import Line
from testbed.linux import unix

MOST = 512  # connections at once
_PAUSE = 1.0  # s without new ones where no descriptor is free, unless one closes before


class Listening:
    """A listening socket and its connections, registered with a selector; the data of each is its Line."""

    def __init__(
        self, selector: selectors.BaseSelector, listener: socket.socket, longest: int, busy: Callable[[Line], bool]
    ) -> None:
        """Listen; where there is no room, a connection that waits longest for nothing (not `busy`) has to go."""
        listener.setblocking(False)
        self.selector = selector
        self.listener = listener
        self.longest = longest
        self.busy = busy
        self.lines: dict[Line, None] = {}  # the one that said nothing for longest first
        self.paused = 0.0  # until when
        selector.register(listener, selectors.EVENT_READ)

    def add(self, line: Line) -> None:
        """Take a connection that is there already."""
        line.connection.setblocking(False)
        self.lines[line] = None
        self.selector.register(line.connection, selectors.EVENT_READ, line)

    def accept(self) -> tuple[Line | None, Line | None]:
        """Return the next connection if it is of this user, and one that has to go for it."""
        gone = self._idle() if len(self.lines) >= MOST else None
        if len(self.lines) >= MOST and gone is None:
            self._pause()
            return None, None
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None, None
        except OSError:  # EMFILE, ENFILE, ENOBUFS, ENOMEM: the kernel would report the same again and again
            if (gone := self._idle()) is None:
                self._pause()
            return None, gone
        if unix.peer(connection).uid != os.geteuid():
            connection.close()
            return None, None
        line = Line(connection, self.longest)
        self.add(line)
        return line, gone

    def heard(self, line: Line) -> None:
        """Note that a connection said something."""
        if line in self.lines:
            self.lines[line] = self.lines.pop(line)

    def drop(self, line: Line) -> None:
        """Forget a connection and hang up."""
        if line in self.lines:
            del self.lines[line]
            self.selector.unregister(line.connection)
        line.close()
        self._resume()

    def settle(self) -> float | None:
        """Ask to be told what each connection waits for; return how long it may take until this is called again.

        One that does not read its answers is not heard until it does, so that they never pile up.
        """
        for key in list(self._keys()):
            wanted = selectors.EVENT_WRITE if key.data.outbox else selectors.EVENT_READ
            if key.events != wanted:
                self.selector.modify(key.fileobj, wanted, key.data)
        if not self.paused:
            return None
        if (left := self.paused - time.monotonic()) <= 0:
            self._resume()
            return None
        return left

    def _keys(self) -> Iterator[selectors.SelectorKey]:
        return (k for k in self.selector.get_map().values() if isinstance(k.data, Line))

    def _idle(self) -> Line | None:
        return next((line for line in self.lines if not self.busy(line)), None)

    def _pause(self) -> None:
        self.selector.unregister(self.listener)
        self.paused = time.monotonic() + _PAUSE

    def _resume(self) -> None:
        if self.paused:
            self.paused = 0.0
            self.selector.register(self.listener, selectors.EVENT_READ)
