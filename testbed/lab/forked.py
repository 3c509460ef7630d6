"""Run one of testbed's programs in a copy of the holder: starting Python takes an emulated processor seconds."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import traceback
from collections.abc import Sequence

from testbed.linux import calls as linux
from testbed.linux import signals

# Names of programs in plans, and thereby in the records of runs, do not change when a module is moved.
PROGRAMS = {
    "testbed.path-manager": "testbed.programs.mptcp.main",
    "testbed.replay": "testbed.programs.replay.main",
    "testbed.sampler": "testbed.programs.sampler.main",
    "testbed.transfer": "testbed.programs.transfer.main",
    "testbed.multicast.receiver": "testbed.programs.multicast.receiver",
    "testbed.multicast.sender": "testbed.programs.multicast.sender",
}


def fork(program: str, words: Sequence[str], cwd: str, fds: Sequence[int]) -> int:
    """Call a program's `main(words)` in a copy of this process, in its present namespaces; return the copy's PID.

    The copy has `fds` as its standard streams, no other open files, and its own process group. If `main` raises, it
    ends with status 1 and a traceback in its log.
    """
    # Until the copy has its own handlers, a signal to it would reach the holder, by the wake-up pipe that both have.
    with signals.signals_wait():
        if (pid := os.fork()) == 0:
            _become(program, words, cwd, fds)
    os.setpgid(pid, pid)  # both do it, so that the group exists before anybody sends it a signal
    return pid


def _become(program: str, words: Sequence[str], cwd: str, fds: Sequence[int]) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for blockable in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(blockable, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        linux.prctl(linux.PR_SET_NAME, program.rpartition(".")[2].encode())
        os.chdir(cwd)
        gc.freeze()  # a garbage collection would copy the holder's pages
        importlib.import_module(PROGRAMS[program]).main(list(words))
        status = 0
    finally:
        if status:
            os.write(2, traceback.format_exc().encode())
        os._exit(status)  # the copy must not go on with the holder's code, whatever happens
