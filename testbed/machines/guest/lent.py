"""Give QEMU the memory of a saved guest for reading only, although it opens that file for reading and writing.

QEMU maps that file privately and never writes to it, but opens it as if it did (softmmu/physmem.c: file_ram_open;
`rom=off,readonly=on` came with 8.2). With such a descriptor, a guest that has taken over its QEMU could change what all
later ones are restored from. So the keeper answers its openat(2) with a descriptor that can only be read
(seccomp_unotify(2), SECCOMP_IOCTL_NOTIF_ADDFD).
"""

from __future__ import annotations

import os
import select
import struct
from fcntl import ioctl
from pathlib import Path

from testbed.linux import calls as linux
from testbed.linux import signals

_SYS_OPENAT, _X86_64 = 257, 0xC000003E
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND, _ADD = 0xC0502100, 0xC0182101, 0x40182103  # linux/seccomp.h: SECCOMP_IOCTL_NOTIF_*
_CONTINUE, _ADD_AND_SEND = 1, 2
_LOAD, _SAME, _RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: LD|W|ABS, JMP|JEQ|K, RET|K
# Of openat(AT_FDCWD, ..., O_RDWR) it asks, which is rare: everything else opens with O_CLOEXEC, or to read.
_FILTER = (
    (_LOAD, 0, 0, 4),
    (_SAME, 0, 5, _X86_64),
    (_LOAD, 0, 0, 0),
    (_SAME, 0, 3, _SYS_OPENAT),
    (_LOAD, 0, 0, 32),
    (_SAME, 0, 1, os.O_RDWR),
    (_RETURN, 0, 0, _ASK),
    (_RETURN, 0, 0, _ALLOW),
)


def listener() -> int:
    """Make this process ask before it opens such a file; return the descriptor that receives its questions."""
    return linux.seccomp_listener(b"".join(struct.pack("=HBBI", *row) for row in _FILTER))


def possible() -> bool:
    """Return whether the kernel allows this: a container or its seccomp profile may forbid it."""
    with signals.signals_wait():
        if (child := os.fork()) == 0:
            status = 1
            try:
                linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
                listener()
                status = 0
            finally:
                os._exit(status)  # this is a child: it must not go on as its parent
    return os.waitpid(child, 0)[1] == 0


def lend(asks: int, name: str, file: int, life: int, seconds: float) -> bool:
    """Answer until the file `name` is opened, with a descriptor of `file`; return whether that happened."""
    poll = select.poll()
    for fd in (asks, life):
        poll.register(fd, select.POLLIN)
    while ready := [fd for fd, _ in poll.poll(1000 * seconds)]:
        if life in ready:
            return False
        request = bytearray(80)  # struct seccomp_notif
        ioctl(asks, _RECEIVE, request)
        ticket, pid = struct.unpack_from("=QI", request)
        (address,) = struct.unpack_from("=Q", request, 40)
        if _path(pid, address, len(name) + 1) in (name.encode() + b"\0", b""):
            ioctl(asks, _ADD, struct.pack("=QIIII", ticket, _ADD_AND_SEND, file, 0, os.O_CLOEXEC))
            return True
        ioctl(asks, _SEND, struct.pack("=QqiI", ticket, 0, 0, _CONTINUE))
    return False


def _path(pid: int, address: int, length: int) -> bytes:
    """Return what a process has at an address; nothing if its memory may not be read (Yama)."""
    try:
        memory = os.open(Path(f"/proc/{pid}/mem"), os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return b""
    try:
        return os.pread(memory, length, address)
    finally:
        os.close(memory)
