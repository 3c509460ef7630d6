"""Signals of this process that wait for a moment that suits."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_wait() -> Iterator[None]:
    """Keep signals waiting until the end of the block, where the handlers of those that came run."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        # A handler that runs at the last moment raises from this very call.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
