"""The private mounts of a sandbox (/proc, /run, /etc/hosts) and of its nodes (/sys)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from testbed.linux import calls as linux

FOLDER = "/run/testbed"  # inside the sandbox: a lab's own files, gone with it
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def furnish() -> None:
    """Mount a lab's private /proc and /run, an /etc/hosts with its nodes, and an empty resolv.conf."""
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    safe = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("proc", "/proc", "proc", safe | linux.MS_NOEXEC)
    linux.mount("testbed", "/run", "tmpfs", safe, "mode=755")
    umask = os.umask(0o022)  # all users in the lab may read these, only root may write them
    for path in ("/run/netns", FOLDER, f"{FOLDER}/tmp"):
        Path(path).mkdir()
    write_hosts("")
    Path(FOLDER, "resolv.conf").touch()  # empty: looking up an unknown name fails at once instead of timing out
    for file in ("hosts", "resolv.conf"):
        if Path("/etc", file).exists():
            linux.mount(f"{FOLDER}/{file}", f"/etc/{file}", "", linux.MS_BIND)
    os.umask(umask)


def write_hosts(rows: str) -> None:
    """Write the sandbox's /etc/hosts, which resolves the names of nodes."""
    Path(FOLDER, "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{rows}")


def settle() -> None:
    """Prepare a node for its first process, from within its network namespace and its own mount namespace.

    Mount its own /sys, for /sys/class/net. Make the kernel give up a TCP connection whose program has ended after one
    retransmission instead of eight: if its path is gone, too, it would keep the node's namespace for up to 100 s
    (tcp_timer.c: tcp_orphan_retries). A value that the topology sets stays.
    """
    with suppress(OSError):  # a container may refuse; only programs that read /sys/class/net miss it
        linux.mount("sysfs", "/sys", "sysfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    retries = Path("/proc/sys/net/ipv4/tcp_orphan_retries")
    if retries.read_text().strip() == "0":
        retries.write_text("1")
