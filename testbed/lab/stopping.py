"""Stop the processes of a lab, newest first, after they have written their results."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import groupby

from testbed.errors import LabError
from testbed.lab.state import Lab, Process, Waiting
from testbed.linux import inet_diag as diag
from testbed.linux import netlink, wire


def finish(processes: Sequence[Process], patience: float = 2.0) -> Waiting:
    """Wait for processes that end by themselves: a server writes its results after its client's end.

    A signal meanwhile would break the results: the handler of iperf3 3.12 prints, too, and crashes or writes half.
    """
    deadline = time.monotonic() + patience
    while any(p.status is None and p.step and p.step.may_end for p in processes):
        if (left := deadline - time.monotonic()) <= 0:
            return
        yield left


def stop(processes: Sequence[Process], patience: float = 3.0) -> Waiting:
    """Stop processes, newest first, each by its own signal, so that captures flush; kill them after `patience` s.

    Successive ones of the same program are stopped together: twelve captures take as long as one.
    """
    alive = [p for p in reversed(processes) if p.status is None]
    for _, some in groupby(alive, lambda p: p.step.argv[0] if p.step and p.step.stop != signal.SIGTERM else p.pid):
        group = list(some)
        for process in group:
            process.stopped = process.step.stop if process.step else signal.SIGTERM
            kill(process, process.stopped)
        deadline = time.monotonic() + patience
        while ending := [p for p in group if p.status is None]:
            if time.monotonic() > deadline:
                for process in ending:
                    process.stopped = signal.SIGKILL
                    kill(process, signal.SIGKILL)
                deadline += patience
            yield max(0.0, deadline - time.monotonic())


def disconnect(lab: Lab, patience: float = 2.0) -> None:
    """Stop all processes and reset the connections of MPTCP hosts, at the orderly end of a lab.

    The kernel keeps an MPTCP connection whose program has ended, and the network namespace with it, for up to a minute
    (net/mptcp/protocol.c: mptcp_close_timeout) unless its subflows are closed.
    """
    hosts = [space for space in lab.nodes.values() if space.genl is not None]
    if not hosts or os.getpid() != 1:
        return
    others = select.poll()
    left = 0
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdigit() and entry != "1":
                others.register(os.pidfd_open(int(entry)), select.POLLIN)
                left += 1
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # all processes of this PID namespace except us, its PID 1
    deadline = time.monotonic() + patience
    while left and (ended := others.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        for fd, _ in ended:
            others.unregister(fd)
            os.close(fd)
        left -= len(ended)
    for space in hosts:
        with netlink.inside(space.fd, lab.home), netlink.connect(wire.NETLINK_SOCK_DIAG) as sock, suppress(LabError):
            diag.abort(sock)


def drain(lab: Lab, processes: Sequence[Process], quiet: float = 0.35, patience: float = 5.0) -> Waiting:
    """Wait until the files to be drained have not grown for `quiet` seconds.

    The kernel hands over the last block of a packet ring after at most 250 ms, dumpcap's read timeout; packets that are
    still in the ring when dumpcap is stopped are lost.
    """
    paths = [lab.folder / p.step.drain for p in processes if p.step and p.step.drain and p.status is None]
    began = changed = time.monotonic()
    sizes: list[int] = []
    while paths and (now := time.monotonic()) < min(changed + quiet, began + patience):
        if (found := [p.stat().st_size if p.exists() else 0 for p in paths]) != sizes:
            sizes, changed = found, now
        yield 0.05


def kill(process: Process, number: int) -> None:
    """Send a signal to the whole group of a process."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def kill_those_in(namespaces: Collection[tuple[int, int]]) -> int:
    """Kill all processes of this PID namespace in one of these UTS or mount namespaces; return their number."""
    count = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or entry == "1":
            continue
        with suppress(OSError):  # it has ended
            life = os.pidfd_open(int(entry))
            try:
                own = (os.stat(f"/proc/{entry}/ns/{kind}") for kind in ("uts", "mnt"))
                if any((o.st_dev, o.st_ino) in namespaces for o in own):
                    count += 1
                    signal.pidfd_send_signal(life, signal.SIGKILL)
            finally:
                os.close(life)
    return count
