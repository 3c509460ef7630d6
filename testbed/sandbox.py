"""The private namespaces of a lab and the holder process, PID 1 in them: when it ends, the kernel cleans up.

A lab's name is an abstract unix socket of its user, bound before anything else: the kernel makes it unique
and removes it with the holder, so that no pid file, lock or socket file can be left behind.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from testbed import linux
from testbed.errors import LabError, Unsupported

FOLDER = "/run/testbed"  # inside the sandbox: a lab's own files, gone with it
LOCALHOST = "127.0.0.1 localhost\n::1 localhost\n"  # how every /etc/hosts begins
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a socket: its process and user, as seen from here (SO_PEERCRED)."""

    pid: int
    uid: int


def address(name: str) -> str:
    """Return the abstract socket address of a lab of this user."""
    return f"\0testbed/{os.geteuid()}/{name}"


def names() -> list[str]:
    """Return the names of this user's labs that are up or coming up."""
    prefix = f"@testbed/{os.geteuid()}/"
    rows = (row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:])
    # Field 4 is the state: accepted connections carry the same address, only the bound socket is unconnected (01).
    return sorted({r[7].removeprefix(prefix) for r in rows if len(r) > 7 and r[7].startswith(prefix) and r[5] == "01"})


def peer(connection: socket.socket) -> Peer:
    """Return who listens at, or connected from, the other end."""
    pid, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid)


def launch(name: str, serve: Callable[[socket.socket, socket.socket], None]) -> socket.socket:
    """Make a sandbox whose PID 1 runs `serve(listener, owner)`; return the owner's end of that connection.

    Raise LabError when a lab of that name exists, Unsupported when the kernel allows no namespaces.
    The sandbox dies with its owner's end until `serve` has decided otherwise.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _first(name, theirs, serve)
    theirs.close()
    os.waitpid(child, 0)
    return ours


def _first(name: str, owner: socket.socket, serve: Callable[[socket.socket, socket.socket], None]) -> NoReturn:
    """Take the name, leave the host's namespaces and fork PID 1; any fault is told to the owner."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        listener = _take(name)
        uid, gid = os.geteuid(), os.getegid()
        # Path lookups of `serve` must not depend on the caller's set-up: nothing in Debian's user PATH has sbin.
        os.environ["PATH"] = ":".join(filter(None, (os.environ.get("PATH"), _SYSTEM_PATH)))
        spaces = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWPID | linux.CLONE_NEWUTS
        try:
            linux.unshare(spaces if uid == 0 else spaces | linux.CLONE_NEWUSER)
        except OSError as e:
            raise Unsupported(_why_no_sandbox(e, uid)) from e
        if uid != 0:
            # One line each is all that a process may map without help from newuidmap(1) (user_namespaces(7)).
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        if os.fork() == 0:
            _second(name, listener, owner, serve)
    except (OSError, LabError, Unsupported) as e:
        _tell(owner, e)
    os._exit(0)


def _second(
    name: str,
    listener: socket.socket,
    owner: socket.socket,
    serve: Callable[[socket.socket, socket.socket], None],
) -> NoReturn:
    """Be PID 1: furnish the mount namespace, close what the caller had open, and serve until the lab ends."""
    gc.freeze()  # what the caller left must never be collected here: it would close descriptors that are ours
    try:
        keep = sorted((listener.fileno(), owner.fileno()))
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for low, high in zip([2, *keep], [*keep, 1 << 20], strict=True):
            os.closerange(low + 1, high)
        linux.prctl(linux.PR_SET_NAME, f"testbed:{name}"[:15].encode())
        linux.sethostname(name)
        _furnish()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        listener.listen(64)  # here and not earlier: SO_PEERCRED tells who called listen
        serve(listener, owner)
    except (OSError, LabError, Unsupported) as e:
        _tell(owner, e)
    finally:
        if (fault := sys.exc_info()[1]) is not None:
            _tell(owner, LabError("a bug in testbed: " + "".join(traceback.format_exception(fault))))
        # Leaving is the cleanup: no Python shutdown, no atexit handler of whoever called us.
        os._exit(0)


def _tell(owner: socket.socket, error: OSError | LabError | Unsupported) -> None:
    from testbed.control import send  # late: it is above this module

    told = error if not isinstance(error, OSError) else LabError(f"the sandbox could not be made: {error}")
    with suppress(OSError):
        send(owner, ("error", told))


def _take(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(address(name))
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            raise
        raise LabError(
            f"lab {name}: there is one of this name already, or another `testbed` is making it at this moment; "
            f"`testbed status {name}` looks at it, `testbed down {name}` ends it, `--name` takes another name"
        ) from e
    return listener


def _why_no_sandbox(error: OSError, uid: int) -> str:
    if uid == 0:
        return f"this process may not make namespaces: {error} (a container needs --privileged or CAP_SYS_ADMIN)"
    rows = []
    for path, bad, cure in (
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "an AppArmor profile that allows userns",
        ),
    ):
        with suppress(OSError):
            if Path(path).read_text().strip() == bad:
                rows.append(f"{path} is {bad}: {cure}")
    why = "; ".join(rows) or "the kernel gave no reason"
    return f"feature userns: this user may not make user namespaces: {error} ({why}; or run as root)"


def _furnish() -> None:
    """Mount what a lab needs of its own: /proc, /run, names for its nodes, no name server."""
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    safe = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("proc", "/proc", "proc", safe | linux.MS_NOEXEC)
    linux.mount("testbed", "/run", "tmpfs", safe, "mode=755")
    for path in ("/run/netns", FOLDER, f"{FOLDER}/tmp"):
        Path(path).mkdir()
    for path in ("/etc/hosts", "/etc/resolv.conf"):
        # An empty resolv.conf makes a look-up of an unknown name fail at once instead of timing out.
        if Path(path).exists():
            own = Path(FOLDER, Path(path).name)
            own.write_text(LOCALHOST if path == "/etc/hosts" else "")
            linux.mount(str(own), path, "", linux.MS_BIND)


def enter(holder: int, node: str, argv: tuple[str, ...]) -> int:
    """Run a command in a node of another process's sandbox, on this terminal; return its exit status.

    The child is ours, so that signals, job control and the terminal are as for any command.
    """
    spaces = [("user", linux.CLONE_NEWUSER), ("mnt", linux.CLONE_NEWNS), ("uts", linux.CLONE_NEWUTS)]
    spaces += [("pid", linux.CLONE_NEWPID), ("net", linux.CLONE_NEWNET)]
    here = os.getcwd()
    fds = [(os.open(f"/proc/{holder}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC), flag) for kind, flag in spaces]
    same_user = os.stat(fds[0][0]).st_ino == os.stat("/proc/self/ns/user").st_ino
    for fd, flag in fds[1:] if same_user else fds:
        linux.setns(fd, flag)
    if node:
        linux.setns(os.open(f"/run/netns/{node}", os.O_RDONLY | os.O_CLOEXEC), linux.CLONE_NEWNET)
    with suppress(OSError):
        os.chdir(here)
    child = os.fork()
    if child == 0:
        _become(node, argv)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the terminal sends these to the child as well: it decides
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: os.kill(child, n))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def _become(node: str, argv: tuple[str, ...]) -> NoReturn:
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # kill -9 of the command line leaves nothing behind
    if node:
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWUTS)
        with suppress(OSError):  # a container may refuse; only programs that read /sys/class/net miss it
            linux.mount("sysfs", "/sys", "sysfs", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        linux.sethostname(node)
    os.environ["PATH"] = ":".join(filter(None, (os.environ.get("PATH"), _SYSTEM_PATH)))
    try:
        os.execvp(argv[0], argv)  # noqa: S606 (the user's own command)
    except OSError as e:
        os.write(2, f"testbed: {argv[0]}: {e.strerror}\n".encode())
        os._exit(127 if e.errno == errno.ENOENT else 126)
