"""The listening socket of a holder or a keeper: it accepts connections of its own user, a limited number at once."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator

from testbed.lab.messages import Line
from testbed.linux import unix

MOST = 512  # connections at once
_PAUSE = 1.0  # s without accepting connections after running out of descriptors, unless one closes


class Listening:
    """A listening socket and its connections, registered with a selector; each connection's data is its Line."""

    def __init__(
        self, selector: selectors.BaseSelector, listener: socket.socket, longest: int, busy: Callable[[Line], bool]
    ) -> None:
        """Listen; if there are too many connections, close the one that has been idle (not `busy`) for longest."""
        listener.setblocking(False)
        self.selector = selector
        self.listener = listener
        self.longest = longest
        self.busy = busy
        self.lines: dict[Line, None] = {}  # the longest idle one first
        self.paused = 0.0  # until when
        selector.register(listener, selectors.EVENT_READ)

    def add(self, line: Line) -> None:
        """Register an existing connection."""
        line.connection.setblocking(False)
        self.lines[line] = None
        self.selector.register(line.connection, selectors.EVENT_READ, line)

    def accept(self) -> tuple[Line | None, Line | None]:
        """Accept a connection of this user; return it and the connection to close for it, if any."""
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
        """Record that a connection sent something."""
        if line in self.lines:
            self.lines[line] = self.lines.pop(line)

    def drop(self, line: Line) -> None:
        """Unregister and close a connection."""
        if line in self.lines:
            del self.lines[line]
            self.selector.unregister(line.connection)
        line.close()
        self._resume()

    def settle(self) -> float | None:
        """Register what each connection waits for; return the time until this must be called again.

        A connection that does not read its answers is not read from until it does, so that answers do not pile up.
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
