"""The few system calls that Python 3.11 lacks: unshare, setns, mount, umount2, prctl, sethostname."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER = 0x00020000, 0x04000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 8, 4096, 16384, 1 << 19
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, status: int) -> None:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave namespaces (unshare(2))."""
    _call("unshare", _libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """Enter the namespace that `fd` stands for (setns(2))."""
    _call("setns", _libc.setns(fd, flags))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount (mount(2))."""
    words = (source.encode(), target.encode(), kind.encode() or None)
    _call(f"mount {target}", _libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None))


def detach(target: str) -> None:
    """Take a mount out of sight; it goes with its last open file (umount2(2), MNT_DETACH)."""
    _call(f"umount {target}", _libc.umount2(target.encode(), 2))


def prctl(option: int, value: int | bytes) -> None:
    """Operate on this process (prctl(2))."""
    word = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    _call("prctl", _libc.prctl(option, word, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def sethostname(name: str) -> None:
    """Name the machine of this UTS namespace (sethostname(2))."""
    raw = name.encode()
    _call("sethostname", _libc.sethostname(raw, len(raw)))
