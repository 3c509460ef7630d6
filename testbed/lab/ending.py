"""The end of a sandbox, with all its processes."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

from testbed.errors import LabError

PATIENCE = 15.0  # seconds for an orderly end of a lab


def await_end(name: str, life: FileIO, patience: float = PATIENCE) -> None:
    """Wait for the end of a sandbox with all its processes; after `patience` seconds, kill it."""
    waiter = select.poll()
    waiter.register(life, select.POLLIN)
    if not _ends(waiter, life, patience):
        signal.pidfd_send_signal(life.fileno(), signal.SIGKILL)
        if not _ends(waiter, life, 10):
            raise LabError(f"lab {name}: its holder, process {process(life)}, does not die (uninterruptible sleep?)")
    life.close()


def _ends(waiter: select.poll, life: FileIO, patience: float) -> bool:
    """Wait until PID 1 of a sandbox has ended, or only zombies of other parents are left."""
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > 0:
        if waiter.poll(1000 * min(left, 0.5)) or _only_zombies(process(life)):
            return True
    return False


def _only_zombies(holder: int) -> bool:
    """Return whether a holder has released all that it had, and no process in its PID namespace is alive.

    PID 1 does not end before its namespace's last zombie is reaped (kernel/pid_namespace.c: zap_pid_ns_processes). A
    zombie whose parent was a killed `testbed exec` belongs to PID 1 outside, which in a container without an init may
    never reap it.
    """
    with suppress(OSError):
        # While it has namespaces, it may still have sockets and files (kernel/exit.c: do_exit).
        os.stat(f"/proc/{holder}/ns/net")
        return False
    try:
        space = os.stat(f"/proc/{holder}/ns/pid").st_ino
    except OSError:
        return False  # it has just ended: its pidfd tells
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdigit() and int(entry) != holder and os.stat(f"/proc/{entry}/ns/pid").st_ino == space:
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    return False
    return True


def process(life: FileIO) -> int:
    """Return the process ID of a pidfd in this namespace."""
    rows = Path(f"/proc/self/fdinfo/{life.fileno()}").read_text().splitlines()
    return next(int(r.split()[1]) for r in rows if r.startswith("Pid:"))
