"""What a sandbox has of its own: /proc, /run, names for its nodes; and each node its /sys."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from testbed.linux import calls as linux

FOLDER = "/run/testbed"  # inside the sandbox: a lab's own files, gone with it
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def furnish() -> None:
    """Mount what a lab needs of its own: /proc, /run, names for its nodes, no name server."""
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    safe = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("proc", "/proc", "proc", safe | linux.MS_NOEXEC)
    linux.mount("testbed", "/run", "tmpfs", safe, "mode=755")
    umask = os.umask(0o022)  # every user in the lab reads these, and root alone writes them
    for path in ("/run/netns", FOLDER, f"{FOLDER}/tmp"):
        Path(path).mkdir()
    write_hosts("")
    Path(FOLDER, "resolv.conf").touch()  # empty: a look-up of an unknown name fails at once instead of timing out
    for file in ("hosts", "resolv.conf"):
        if Path("/etc", file).exists():
            linux.mount(f"{FOLDER}/{file}", f"/etc/{file}", "", linux.MS_BIND)
    os.umask(umask)


def write_hosts(rows: str) -> None:
    """Let names of nodes resolve in the sandbox: this file is its /etc/hosts."""
    Path(FOLDER, "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{rows}")


def settle() -> None:
    """Prepare a node, in its network namespace and a mount namespace of its own, for its first process.

    /sys/class/net becomes the node's. And a TCP connection whose program has ended is given up after one
    retransmission, not after eight: where its path is gone too, the kernel would keep the node's namespace for it
    for up to 100 s (tcp_timer.c: tcp_orphan_retries). A value that the topology states stays.
    """
    with suppress(OSError):  # a container may refuse; only programs that read /sys/class/net miss it
        linux.mount("sysfs", "/sys", "sysfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
    retries = Path("/proc/sys/net/ipv4/tcp_orphan_retries")
    if retries.read_text().strip() == "0":
        retries.write_text("1")
