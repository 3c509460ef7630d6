"""The end of a sandbox: all its processes with its PID 1."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

from testbed.errors import LabError

PATIENCE = 15.0  # seconds in which a lab may end in its own orderly way


def await_end(name: str, life: FileIO, patience: float = PATIENCE) -> None:
    """Return when a sandbox, all its processes with its PID 1, has ended: by SIGKILL after `patience` seconds."""
    waiter = select.poll()
    waiter.register(life, select.POLLIN)
    if not _ends(waiter, life, patience):
        signal.pidfd_send_signal(life.fileno(), signal.SIGKILL)
        if not _ends(waiter, life, 10):
            raise LabError(f"lab {name}: its holder, process {process(life)}, does not die (uninterruptible sleep?)")
    life.close()


def _ends(waiter: select.poll, life: FileIO, patience: float) -> bool:
    """Wait until PID 1 of a sandbox has ended, or nothing of it is left but zombies that are not ours to reap."""
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > 0:
        if waiter.poll(1000 * min(left, 0.5)) or _only_zombies(process(life)):
            return True
    return False


def _only_zombies(holder: int) -> bool:
    """Say whether a holder has let go of all that it had, and nothing in its PID namespace lives.

    The end of PID 1 waits until its namespace's last zombie is reaped (kernel/pid_namespace.c: zap_pid_ns_processes).
    A zombie whose parent was a killed `testbed exec` is left to PID 1 outside, which in a container without an init
    may reap nothing, ever.
    """
    with suppress(OSError):
        # Where it still has namespaces, its sockets and files may be there as well (kernel/exit.c: do_exit).
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
    """Return the number, as seen from here, of the process that a pidfd stands for."""
    rows = Path(f"/proc/self/fdinfo/{life.fileno()}").read_text().splitlines()
    return next(int(r.split()[1]) for r in rows if r.startswith("Pid:"))
