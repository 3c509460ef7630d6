"""The regulatory domain, of which a kernel has one: lent to labs with radios, given back when the last has ended.

Which it was is kept in a file that every such lab holds a lock of: whoever can lock it alone is the last. Where the
machine or all processes were killed, that is the next lab with radios.
Source: net/wireless/nl80211.c (nl80211_get_reg_do, nl80211_req_set_reg).
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from testbed.drivers import nl80211
from testbed.errors import LabError
from testbed.linux import netlink, wire

_FILE = Path("/run/testbed-country")  # of root: nobody else may change the domain
_PATIENCE = 5.0  # seconds for the kernel to obey: it reads its database first


def borrow() -> tuple[int, int]:
    """Keep in mind which regulatory domain there is; return descriptors of the file that is locked and of its folder.

    OSError or LabError where it can't be known or kept: then a lab leaves its own behind.
    """
    while True:
        fd = os.open(_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # What a lab that ends at this moment gives back is there before its lock goes.
            if alone(fd) and os.fstat(fd).st_nlink and not os.fstat(fd).st_size:
                os.pwrite(fd, current().encode(), 0)
            fcntl.flock(fd, fcntl.LOCK_SH)
            if os.fstat(fd).st_nlink and os.fstat(fd).st_size:
                return fd, os.open(_FILE.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # the last lab ended at this moment, and took the file away


def alone(fd: int) -> bool:
    """Lock the file exclusively if no other process has it; otherwise leave it unlocked."""
    with suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def give_back(fd: int, folder: int, free: bool) -> None:
    """Set the previous domain again, unless other labs with radios are still up.

    Without `free` that is left to the next lab with radios. Where stations went without leaving their networks, the
    kernel would not obey, but join what the user asks for with what their access points said, for all labs to come
    (net/wireless/reg.c: __reg_process_hint_user); the stations of that lab will leave.
    The kernel takes a request and obeys it later. The lock is kept until it has, so that the next lab does not begin in
    the middle of it: its access point would take that change for its own, and find its channel closed.
    The folder is the machine's: whoever calls this may be where a lab has a /run of its own.
    """
    if free and alone(fd):
        before = os.pread(fd, 8, 0).decode(errors="replace")
        if before and before != current():
            with netlink.connect(wire.NETLINK_GENERIC) as sock:
                body = nl80211.set_country(before)
                netlink.transact(sock, [wire.Message(0, 0, body)], _family(sock))
            deadline = time.monotonic() + _PATIENCE
            while current() != before and time.monotonic() < deadline:
                time.sleep(0.01)
        with suppress(FileNotFoundError):
            os.unlink(_FILE.name, dir_fd=folder)
    os.close(fd)
    os.close(folder)


def current() -> str:
    """Return the country of the kernel's regulatory domain, 00 for the world domain."""
    with netlink.connect(wire.NETLINK_GENERIC) as sock:
        kind = _family(sock)
        sock.send(wire.header(len(nl80211.GET_COUNTRY), kind, wire.NLM_F_REQUEST, 1) + nl80211.GET_COUNTRY)
        for got, _, _, entry in wire.messages(sock.recv(65536)):
            if got == kind:
                return nl80211.parse_country(entry)
    raise LabError("nl80211 does not tell its regulatory domain")


def _family(sock: socket.socket) -> int:
    if not (kind := netlink.family(sock, nl80211.FAMILY)):
        raise LabError(f"this kernel has no generic netlink family {nl80211.FAMILY}")
    return kind
