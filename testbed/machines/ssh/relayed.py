"""Output of another machine on its way to our user: a process of its own makes everything in it visible."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from testbed.linux import signals
from testbed.plain import stream

_PART = 1 << 16


@contextmanager
def relayed(streams: Sequence[int] = (1, 2)) -> Iterator[tuple[int, ...]]:
    """Yield a pipe for each of some descriptors: what is written to it comes out here with everything visible.

    For what a command line prints on another machine; a command of the user's own (`exec`, `shell`) is not filtered.
    It ends when the last process that has a pipe closes it; everything that was written has come out by then.
    """
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in streams]
    with signals.signals_wait():
        if (child := os.fork()) == 0:
            _pass_on({source: out for (source, _), out in zip(pipes, streams, strict=True)})
    for source, _ in pipes:
        os.close(source)
    try:
        yield tuple(ours for _, ours in pipes)
    finally:
        for _, ours in pipes:
            os.close(ours)
        with suppress(ChildProcessError):  # a caller who ignores SIGCHLD
            os.waitpid(child, 0)


def _pass_on(ways: Mapping[int, int]) -> NoReturn:
    """Copy until every source has ended, or until nobody reads any more: then the writer gets EPIPE.

    Signals stay blocked: this ends when its sources do, and keeps nothing else of its parent's open.
    """
    try:
        keep = sorted({*ways, *ways.values()})
        for low, high in zip([-1, *keep], [*keep, 1 << 20], strict=True):
            os.closerange(low + 1, high)
        visible = {source: stream() for source in ways}
        while visible:
            for source in select.select(list(visible), [], [])[0]:
                part = os.read(source, _PART)
                said = visible[source](part)
                try:
                    while said:
                        said = said[os.write(ways[source], said) :]
                except OSError:
                    part = b""
                if not part:
                    del visible[source]
                    os.close(source)
    finally:
        os._exit(0)  # this is a child: it must not go on with its parent's code
