"""A process without privileges for QEMU, which untrusted guests may take over.

It belongs to a user of its own, has no groups and no capabilities, can't gain any by executing a program, and writes no
file larger than `LARGEST`. QEMU adds a filter of system calls (`-sandbox`).
"""

from __future__ import annotations

import os
import resource
import secrets
import signal
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from testbed.linux import calls as linux
from testbed.machines.guest import lent

KVM = Path("/dev/kvm")
LARGEST = 8 << 30  # bytes of one file
# Ids that nobody has: above those that systemd gives to containers (its docs/UIDS-GIDS.md), or those that it gives to
# services, in a container that maps ids of 16 bits alone. Random, so that two guests do not belong to one user.
_RANGES = (range(0x70000000, 0x78000000), range(61184, 65520))
_LIMITS = {
    resource.RLIMIT_CORE: 0,  # the memory of a guest
    resource.RLIMIT_FSIZE: LARGEST,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_NOFILE: 4096,
}


def user() -> int:
    """Return a user id for a confined process; 0 if this user can't become another one."""
    if os.geteuid() != 0:
        return 0
    maps = [_mapped(Path("/proc/self", name)) for name in ("uid_map", "gid_map")]
    for wanted in _RANGES:
        if all(any(m.start <= wanted.start and wanted.stop <= m.stop for m in rows) for rows in maps):
            return secrets.choice(wanted)
    return 0


def _mapped(file: Path) -> list[range]:
    rows = ([int(word) for word in row.split()] for row in file.read_text().splitlines())
    return [range(first, first + count) for first, _, count in rows]


def start(argv: Sequence[str], uid: int, fds: Sequence[int], out: int, lends: bool) -> tuple[int, int]:
    """Start a program without privileges, with these descriptors and `out` for its output.

    Return its process id, and where it asks for the file that is lent to it (machines/lent.py); -1 without.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if (child := os.fork()) == 0:
            _become(argv, uid, fds, out, theirs if lends else None)
        theirs.close()
        asks = socket.recv_fds(ours, 1, 1)[1] if lends else []
    return child, asks[0] if asks else -1


def _become(argv: Sequence[str], uid: int, fds: Sequence[int], out: int, asks: socket.socket | None) -> NoReturn:
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        # SIGXFSZ stays ignored: a file that would become too large is an error of the guest's, and not its end.
        for stream in (1, 2):
            os.dup2(out, stream)
        for fd in fds:
            os.set_inheritable(fd, True)
        give_up(uid)
        if asks is not None:
            listener = lent.listener()
            socket.send_fds(asks, [b"\0"], [listener])
            os.close(listener)
        os.execvp(argv[0], list(argv))  # noqa: S606 (QEMU)
    except OSError as e:
        os.write(2, f"{argv[0]} can't be started without privileges: {e}\n".encode())
    finally:
        os._exit(126)  # this is a child: it must not go on as its parent


def give_up(uid: int) -> None:
    """Give up all privileges for good."""
    for limit, most in _LIMITS.items():
        allowed = resource.getrlimit(limit)[1]
        least = most if allowed == resource.RLIM_INFINITY else min(most, allowed)
        resource.setrlimit(limit, (least, least))
    linux.drop_bounding_set()
    if uid:
        os.setgroups(_groups())
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


def _groups() -> list[int]:
    """Return the group that may use KVM, if there is one."""
    if not KVM.exists():
        return []
    found = KVM.stat()
    both = stat.S_IRGRP | stat.S_IWGRP
    return [found.st_gid] if found.st_gid and found.st_mode & both == both else []


def admit(uid: int) -> None:
    """Let a user outside of its group use /dev/kvm in this mount namespace, through a device node of their own."""
    if not uid or not KVM.exists() or _groups() or KVM.stat().st_mode & 0o006 == 0o006:
        return
    number = KVM.stat().st_rdev
    folder = Path("/run/testbed/dev")
    folder.mkdir(parents=True, exist_ok=True)
    linux.mount("dev", str(folder), "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, "mode=711,size=4k")
    os.mknod(folder / "kvm", stat.S_IFCHR | 0o600, number)
    os.chown(folder / "kvm", uid, uid)
    linux.mount(str(folder / "kvm"), str(KVM), "", linux.MS_BIND)
