"""A program of ours as a copy of the holder: to start Python again takes an emulated processor seconds."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import traceback
from collections.abc import Sequence

from testbed.linux import calls as linux
from testbed.linux import signals

# A program's name in a plan, and so in the records of runs, outlives the module that it is in.
PROGRAMS = {
    "testbed.sampler": "testbed.programs.sampler.main",
    "testbed.multicast.receiver": "testbed.programs.multicast.receiver",
    "testbed.multicast.sender": "testbed.programs.multicast.sender",
}


def fork(program: str, words: Sequence[str], cwd: str, fds: Sequence[int]) -> int:
    """Call a program's `main(words)` in a copy of this process and return its PID; it has the namespaces of now.

    Nothing of the holder is left open in it: its standard streams are `fds`, and its process group is its own.
    It ends with status 1 and a traceback in its log if `main` raises.
    """
    # A signal that came before the copy has handlers of its own would be told to the holder, by a pipe that both have.
    with signals.signals_wait():
        if (pid := os.fork()) == 0:
            _become(program, words, cwd, fds)
    os.setpgid(pid, pid)  # both do it: who signals the group must not come before it is there
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
        gc.freeze()  # a collection would copy the holder's pages one by one
        importlib.import_module(PROGRAMS[program]).main(list(words))
        status = 0
    finally:
        if status:
            os.write(2, traceback.format_exc().encode())
        os._exit(status)  # it must not go on with the holder's code, whatever happens
