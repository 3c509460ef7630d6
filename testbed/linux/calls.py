"""System calls that Python 3.11 lacks, through ctypes."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWUSER = 0x00020000, 0x04000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 8, 4096, 16384, 1 << 19
MS_RDONLY, MS_REMOUNT, MS_RELATIME = 1, 32, 1 << 21
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 1, 15, 38
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _CLEAR_ALL = 24, 47, 4
_SYS_CAPSET, _SYS_SECCOMP = 126, 317  # of x86-64, as QEMU's guests are
_CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_SECCOMP_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, status: int) -> None:
    if status < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move this process into new namespaces (unshare(2))."""
    _call("unshare", _libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """Enter the namespace that `fd` stands for (setns(2))."""
    _call("setns", _libc.setns(fd, flags))


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount (mount(2))."""
    words = (source.encode(), target.encode(), kind.encode() or None)
    _call(f"mount {target}", _libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None))


def detach(target: str) -> None:
    """Detach a mount: the kernel unmounts it once nothing uses it any more (umount2(2), MNT_DETACH)."""
    _call(f"umount {target}", _libc.umount2(target.encode(), 2))


def prctl(option: int, value: int | bytes) -> None:
    """Set an attribute of this process (prctl(2))."""
    word = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    _call("prctl", _libc.prctl(option, word, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace (sethostname(2))."""
    raw = name.encode()
    _call("sethostname", _libc.sethostname(raw, len(raw)))


def drop_bounding_set() -> None:
    """Keep every program that this process executes from gaining capabilities (capabilities(7))."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        prctl(_PR_CAPBSET_DROP, capability)


def drop_capabilities() -> None:
    """Drop all capabilities of this process for good (capset(2))."""
    _call("prctl", _libc.prctl(_PR_CAP_AMBIENT, *map(ctypes.c_ulong, (_CLEAR_ALL, 0, 0, 0))))
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    _call("capset", _libc.syscall(ctypes.c_long(_SYS_CAPSET), header, none))


def seccomp_listener(program: bytes) -> int:
    """Filter this process's system calls by a BPF program; return its notification descriptor (seccomp_unotify(2))."""
    code = ctypes.create_string_buffer(program, len(program))
    head = (ctypes.c_uint64 * 2)(len(program) // 8, ctypes.addressof(code))  # struct sock_fprog, little-endian
    words = (ctypes.c_long(_SYS_SECCOMP), _SECCOMP_SET_MODE_FILTER, _NEW_LISTENER, head)
    listener = int(_libc.syscall(*words))
    _call("seccomp", listener)
    return listener


def punch(fd: int, offset: int, length: int) -> None:
    """Free the space of a part of a file, which then reads as zeros (fallocate(2))."""
    _call("fallocate", _libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(length)))
