"""The standard streams of the program: what is printed on them is visible, whatever it has (`testbed.plain`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TextIO

from testbed.errors import LabError


class Screen(TextIOWrapper):
    """A standard stream on which everything is visible, whoever prints: this program or a library.

    LabError when standard output can't be written. What can't be written on standard error is lost: there is nowhere
    to say so, and a measurement is worth more than the words about it.
    """

    def write(self, text: str) -> int:
        """Write text with what hides, or moves a cursor, spelt out."""
        from testbed.plain import shown  # late: `testbed exec` prints nothing

        with self._written():
            super().write(shown(text))
        return len(text)

    def flush(self) -> None:
        """Write what waits."""
        with self._written():
            super().flush()

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as e:
            self._give_up()  # the reader of our output went away: nothing to say to it
            raise SystemExit(141) from e
        except OSError as e:
            self._give_up()
            if self.fileno() != 2:
                raise LabError(f"standard output can't be written: {e.strerror}") from e

    def _give_up(self) -> None:
        """Let what waits, and what follows, go nowhere."""
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, self.fileno())
        os.close(null)


@contextmanager
def screens() -> Iterator[None]:
    """Let what is printed on the standard streams be seen; what is printed on one that the caller closed is not."""
    before = sys.stdout, sys.stderr
    while (null := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass  # it takes the number of a stream that is closed, which else the next file or socket would get
    os.close(null)
    sys.stdout, sys.stderr = made = [_screen(stream, fd) for fd, stream in enumerate(before, 1)]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for screen in made:
            with suppress(LabError, SystemExit):  # what can't be said now, nobody waits for
                screen.flush()
            screen.detach()  # its buffer belongs to the stream before, which is not to be closed


def _screen(stream: TextIO | None, fd: int) -> Screen:
    if stream is None:
        return Screen(BufferedWriter(FileIO(fd, "w", closefd=False)), "utf-8")
    at_once = fd == 2 or stream.isatty()
    return Screen(stream.buffer, stream.encoding, "backslashreplace", line_buffering=at_once)
