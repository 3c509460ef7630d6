"""The private namespaces of a lab and the holder process, PID 1 in them: when it ends, the kernel cleans up.

A lab's name is an abstract unix socket of its user, bound before anything else: the kernel makes it unique
and removes it with the holder, so that no pid file, lock or socket file can be left behind.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import resource
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from io import FileIO
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from testbed import faults
from testbed.errors import LabError, TestbedError, Unsupported
from testbed.lab.messages import Line, send
from testbed.linux import calls as linux

T = TypeVar("T")
FAMILY = "testbed"  # of the names of labs
_WHAT = {FAMILY: "lab", "testbed-guest": "guest"}
# A lab or a guest can be called so; any other name could change a terminal that it is shown on.
NAME = re.compile(r"[a-z][a-z0-9-]*")
PATIENCE = 15.0  # seconds in which a lab may end in its own orderly way
ANSWERS = 5.0  # seconds in which whoever listens takes a connection, and answers what needs no work
ABRUPT = 1  # the exit status of PID 1 when nothing in the sandbox was ended in its own way
FOLDER = "/run/testbed"  # inside the sandbox: a lab's own files, gone with it
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SilentError(LabError):
    """A holder does not answer: it is stopped, or stuck in the kernel."""


class Peer(NamedTuple):
    """Who is at the other end of a socket: its process and user, as seen from here (SO_PEERCRED)."""

    pid: int
    uid: int


def address(name: str, family: str = FAMILY) -> str:
    """Return the abstract socket address of a lab of this user, or of a sandbox of another family."""
    return f"\0{_prefix(family)}{name}"


def _prefix(family: str) -> str:
    return f"{family}/{os.geteuid()}/"


def names(family: str = FAMILY) -> list[str]:
    """Return the names of this user's labs that are up or coming up; what others have bound, or odd names, are none."""
    from testbed.linux.unix_diag import owned  # `testbed exec` finds its lab by connecting

    found = (name for name, uid in owned(_prefix(family)) if uid == os.geteuid())
    return sorted({name for name in found if NAME.fullmatch(name)})


def owner(name: str, family: str = FAMILY) -> int | None:
    """Return the user who has bound the name of a lab, None when nobody has."""
    from testbed.linux.unix_diag import owned

    return next((uid for found, uid in owned(_prefix(family)) if found == name), None)


def peer(connection: socket.socket) -> Peer:
    """Return who listens at, or connected from, the other end."""
    pid, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid)


def dial(where: str, patience: float = ANSWERS) -> socket.socket:
    """Connect to an abstract address; OSError when nobody listens, TimeoutError when nobody accepts in time.

    What comes next on this connection takes as long as it takes, or as its user says (settimeout).
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # The kernel waits so long for room in the backlog; a socket that does not block would not wait at all.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(patience), 0))
        connection.connect(where)
    except BaseException as e:
        connection.close()
        if isinstance(e, BlockingIOError):
            raise TimeoutError(f"nobody took the connection within {patience:g} s") from e
        raise
    return connection


def listens(name: str, family: str = FAMILY) -> bool:
    """Say whether a sandbox of this user listens at a name, without waiting for one that does not take connections."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.setblocking(False)
        try:
            connection.connect(address(name, family))
        except OSError:
            return False
        return peer(connection).uid == os.geteuid()


def call(name: str, family: str = FAMILY, patience: float = ANSWERS) -> socket.socket:
    """Connect to a sandbox of this user; LabError when there is none, or when it does not listen.

    Whoever else has bound its name is told nothing, and can't make us wait longer than `patience`.
    """
    what = _WHAT[family]
    try:
        connection = dial(address(name, family), patience)
    except TimeoutError as e:
        if (uid := owner(name, family)) not in (None, os.geteuid()):
            raise LabError(_foreign(what, name, uid)) from e
        raise SilentError(f"{what} {name}: it takes no connection (is its holder stopped?)") from e
    except OSError as e:
        if (uid := owner(name, family)) not in (None, os.geteuid()):
            raise LabError(_foreign(what, name, uid)) from e
        if uid is not None:
            raise LabError(f"{what} {name}: it is coming up or going down at this moment; try again") from e
        up = ", ".join(names(family)) or "none"
        made = "; `testbed up` makes one" if family == FAMILY else ""
        raise LabError(f"{what} {name}: no such {what} is up ({what}s of this user: {up}){made}") from e
    if (uid := peer(connection).uid) != os.geteuid():
        connection.close()
        raise LabError(_foreign(what, name, uid))
    return connection


def holder(name: str, connection: socket.socket) -> tuple[int, FileIO]:
    """Return the process id and the pidfd of PID 1 of the sandbox that a connection leads to."""
    number = peer(connection).pid
    try:
        life = FileIO(os.pidfd_open(number))
    except OSError as e:  # ESRCH, or EINVAL when its number here is 0
        raise LabError(f"lab {name}: its holder ended, or belongs to another PID namespace") from e
    # As long as the connection stands, no other process can have taken the number.
    waiter = select.poll()
    waiter.register(connection, 0)
    if waiter.poll(0):
        raise LabError(ended(name))
    return number, life


def ended(name: str) -> str:
    """Say that a lab's holder is gone."""
    return f"lab {name}: its holder process ended (killed, or `testbed down`)"


def silent(name: str, number: int) -> str:
    """Say that a lab's holder gives no sign of life, and what to do."""
    return (
        f"lab {name}: its holder, process {number}, does not answer (is it stopped?); "
        f"`testbed down {name}` ends it all the same"
    )


def _foreign(what: str, name: str, uid: int | None) -> str:
    return (
        f"{what} {name}: another user of this machine (uid {uid}) has bound its name, so it can't be yours; "
        "take another name (`--name`), or have the administrator end that process"
    )


def launch(
    name: str,
    serve: Callable[[socket.socket, socket.socket], None],
    use: Callable[[socket.socket, FileIO], T],
    family: str = FAMILY,
    spaces: int = linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWPID | linux.CLONE_NEWUTS,
    after: Callable[[bool], None] | None = None,
    keep: Sequence[int] = (),
    inside: Sequence[int] = (),
) -> T:
    """Make a sandbox whose PID 1 runs `serve(listener, owner)`; return what `use` does with it.

    It has the descriptors `inside`, by the numbers that they have here, and no others.
    `use` gets the owner's end of that connection, with which the sandbox dies until `serve` has decided otherwise,
    and a pidfd. `after` is called when the sandbox has ended, in a process outside of it that waits for that and
    has the descriptors `keep`; it is told whether PID 1 ended with status 0. Raise
    LabError when a lab of that name exists, Unsupported when the kernel allows no namespaces.
    Whatever is raised, by `use` or by the handler of a signal at any moment, is raised when nothing is left of it.
    """
    ours, theirs = socket.socketpair()
    line, child, life = Line(ours), 0, None
    # No `with` in place of `use`: a handler's exception can come between what a generator yields and the block.
    try:
        with signals_wait():  # no handler of ours runs in the child
            if (child := os.fork()) == 0:
                _never_return(theirs, lambda: _first(name, theirs, serve, family, spaces, after, keep, inside))
        theirs.close()
        _reap(child)
        first = select.poll()
        first.register(ours, select.POLLIN)
        first.poll()
        with signals_wait():  # what has come is ours before anything is raised
            life = _born(name, line)
        return use(ours, life)
    except BaseException:
        theirs.close()
        with suppress(OSError):  # it is gone already
            ours.shutdown(socket.SHUT_WR)  # a copy of it may live in a process that somebody forked
        if child:
            _reap(child)
        # With this error nothing but the end of the sandbox matters, and PATIENCE bounds that.
        with suppress(TestbedError, OSError):
            if child and life is None:
                ours.settimeout(PATIENCE)
                life = _born(name, line)
            if life is not None and not life.closed:
                await_end(name, life)
        ours.close()
        raise


@contextmanager
def signals_wait() -> Iterator[None]:
    """Keep signals waiting until the end of the block, where the handlers of those that came run."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        # A handler that runs at the last moment raises from this very call.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _born(name: str, line: Line) -> FileIO:
    """Return the pidfd of PID 1, which it sends as its first word, or raise why there is none."""
    try:
        found = line.receive()
    except EOFError as e:
        raise LabError(f"lab {name}: its holder process ended while it was being made (killed?)") from e
    assert found is not None, "the socket does not block"
    data, fds = found
    from testbed.lab import answers  # here and below: `testbed exec` launches nothing, and does not wait for msgspec

    came = answers.decode(data)
    if isinstance(came, answers.Failed):
        answers.throw(came)
    if isinstance(came, answers.Born) and fds:
        return FileIO(fds[0])
    raise LabError(f"lab {name}: its holder process did not say that it is there")


def await_end(name: str, life: FileIO, patience: float = PATIENCE) -> None:
    """Return when a sandbox, all its processes with its PID 1, has ended: by SIGKILL after `patience` seconds."""
    waiter = select.poll()
    waiter.register(life, select.POLLIN)
    if not _ends(waiter, life, patience):
        signal.pidfd_send_signal(life.fileno(), signal.SIGKILL)
        if not _ends(waiter, life, 10):
            raise LabError(f"lab {name}: its holder, process {process(life)}, does not die (uninterruptible sleep?)")
    life.close()


def _ends(waiter: select.poll, life: FileIO, patience: float) -> bool:
    """Wait until PID 1 of a sandbox has ended, or nothing of it is left but zombies that are not ours to reap."""
    deadline = time.monotonic() + patience
    while (left := deadline - time.monotonic()) > 0:
        if waiter.poll(1000 * min(left, 0.5)) or _only_zombies(process(life)):
            return True
    return False


def _only_zombies(holder: int) -> bool:
    """Say whether a holder has let go of all that it had, and nothing in its PID namespace lives.

    The end of PID 1 waits until its namespace's last zombie is reaped (kernel/pid_namespace.c: zap_pid_ns_processes).
    A zombie whose parent was a killed `testbed exec` is left to PID 1 outside, which in a container without an init
    may reap nothing, ever.
    """
    with suppress(OSError):
        # Where it still has namespaces, its sockets and files may be there as well (kernel/exit.c: do_exit).
        os.stat(f"/proc/{holder}/ns/net")
        return False
    try:
        space = os.stat(f"/proc/{holder}/ns/pid").st_ino
    except OSError:
        return False  # it has just ended: its pidfd tells
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdigit() and int(entry) != holder and os.stat(f"/proc/{entry}/ns/pid").st_ino == space:
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    return False
    return True


def process(life: FileIO) -> int:
    """Return the number, as seen from here, of the process that a pidfd stands for."""
    rows = Path(f"/proc/self/fdinfo/{life.fileno()}").read_text().splitlines()
    return next(int(r.split()[1]) for r in rows if r.startswith("Pid:"))


def _reap(child: int) -> None:
    with suppress(ChildProcessError):  # collected already, or by a caller who ignores SIGCHLD
        os.waitpid(child, 0)


def _never_return(owner: socket.socket, body: Callable[[], None]) -> NoReturn:
    """Run what a forked child is for, and leave: it must not go on with its parent's code, whatever happens."""
    gc.freeze()  # what the parent left must never be collected here: it would close descriptors that are ours
    try:
        body()
    except (OSError, LabError, Unsupported) as e:
        _tell(owner, e if not isinstance(e, OSError) else LabError(f"the sandbox could not be made: {faults.words(e)}"))
    finally:
        if (fault := sys.exc_info()[1]) is not None:
            _tell(owner, faults.known(fault))
        # Leaving is the cleanup: no Python shutdown, no atexit handler of whoever called us.
        os._exit(0)


def _tell(owner: socket.socket, error: TestbedError) -> None:
    from testbed.lab import answers

    with suppress(OSError):
        send(owner, answers.encode(answers.failed(error)))


def _first(
    name: str,
    owner: socket.socket,
    serve: Callable[[socket.socket, socket.socket], None],
    family: str,
    spaces: int,
    after: Callable[[bool], None] | None,
    keep: Sequence[int],
    inside: Sequence[int],
) -> None:
    """Make the sandbox from a process that has nothing of its caller's; stay where something is to be done after it."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a caller may ignore it: see `program.perform`
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if after is not None and os.fork():
        return  # the launcher waits for this one; a child after unshare(2) would be in the sandbox
    status = 0
    try:
        first = _unshared(name, owner, serve, family, spaces, inside)
        if after is not None:
            linux.prctl(linux.PR_SET_NAME, b"testbed-after")
            os.chdir("/")
            # Nobody must wait for this process: the name and the caller's files are not its own.
            for low, high in zip([-1, *sorted(keep)], [*sorted(keep), 1 << 20], strict=True):
                os.closerange(low + 1, high)
            status = os.waitpid(first, 0)[1]
    finally:
        if after is not None:
            after(status == 0)


def _unshared(
    name: str,
    owner: socket.socket,
    serve: Callable[[socket.socket, socket.socket], None],
    family: str,
    spaces: int,
    inside: Sequence[int],
) -> int:
    """Take the name, leave the host's namespaces, fork PID 1 and return its number."""
    listener = _take(name, family)
    uid, gid = os.geteuid(), os.getegid()
    # Path lookups of `serve` must not depend on the caller's set-up: nothing in Debian's user PATH has sbin.
    os.environ["PATH"] = ":".join(filter(None, (os.environ.get("PATH"), SYSTEM_PATH)))
    try:
        linux.unshare(spaces if uid == 0 else spaces | linux.CLONE_NEWUSER)
    except OSError as e:
        raise Unsupported(why_none(e, uid)) from e
    if uid != 0:
        # One line each is all that a process may map without help from newuidmap(1) (user_namespaces(7)).
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    if (first := os.fork()) == 0:
        _never_return(owner, lambda: _second(name, listener, owner, serve, inside))
    return first


def _second(
    name: str,
    listener: socket.socket,
    owner: socket.socket,
    serve: Callable[[socket.socket, socket.socket], None],
    inside: Sequence[int],
) -> None:
    """Be PID 1: close what the caller had open, furnish the mount namespace, and serve until the lab ends."""
    # Above the standard streams, which a caller without them may have given these numbers.
    listener, owner = (socket.socket(fileno=fcntl(s, F_DUPFD_CLOEXEC, 3)) for s in (listener, owner))
    keep = sorted({listener.fileno(), owner.fileno(), *inside})
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for low, high in zip([2, *keep], [*keep, 1 << 20], strict=True):
        os.closerange(low + 1, high)
    os.chdir("/")  # the caller's folder may go
    own = os.pidfd_open(os.getpid())
    from testbed.lab import answers

    send(owner, answers.encode(answers.Born()), [own])
    os.close(own)
    linux.prctl(linux.PR_SET_NAME, f"testbed:{name}"[:15].encode())
    linux.sethostname(name)
    _furnish()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener.listen(64)  # here and not earlier: SO_PEERCRED tells who called listen
    serve(listener, owner)


def _take(name: str, family: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(address(name, family))
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            raise
        if (uid := owner(name, family)) not in (None, os.geteuid()):
            raise LabError(_foreign(_WHAT.get(family, "lab"), name, uid)) from e
        raise LabError(
            f"lab {name}: there is one of this name already, or another `testbed` is making it at this moment; "
            f"`testbed status {name}` looks at it, `testbed down {name}` ends it, `--name` takes another name"
        ) from e
    return listener


_FORBIDDING = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "an AppArmor profile that allows userns"),
)


def why_none(error: OSError, uid: int) -> str:
    """Say why this process may not make namespaces, and what helps."""
    rows = []
    for path, bad, cure in _FORBIDDING if uid else ():
        with suppress(OSError):
            if Path(path).read_text().strip() == bad:
                rows.append(f"{path} is {bad}: {cure}")
    if error.errno == errno.ENOSPC and not rows:
        rows.append("as many as /proc/sys/user/max_*_namespaces allows are there")
    if uid == 0:
        why = "; ".join(rows) or "a container needs --privileged or CAP_SYS_ADMIN"
        return f"this process may not make namespaces: {error} ({why})"
    why = "; ".join(rows) or "the kernel gave no reason"
    return f"feature userns: this user may not make user namespaces: {error} ({why}; or run as root)"


def _furnish() -> None:
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
