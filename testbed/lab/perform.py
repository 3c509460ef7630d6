"""Performs steps: the one module that changes Linux. It runs as PID 1 of a sandbox and has one thread.

Waiting is written as generators that yield how long they may sleep; the holder resumes them at that time
or as soon as a process ends.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, groupby
from pathlib import Path
from typing import TextIO, cast

from msgspec import Struct, field
from msgspec.structs import replace

from testbed.drivers.bound import Bound
from testbed.drivers.link import LinkSet, NamespaceAdd
from testbed.drivers.nl80211 import LOOKING
from testbed.drivers.sysctl import SysctlSet
from testbed.drivers.wpa_ctrl import Control
from testbed.errors import LabError
from testbed.lab import bounds, furniture
from testbed.lab.forked import fork
from testbed.lab.namespace import Namespace, Sockets, create
from testbed.lab.probes import holds
from testbed.linux import calls as linux
from testbed.linux import inet_diag as diag
from testbed.linux import netlink, wire
from testbed.metrics.records import Held
from testbed.results import written
from testbed.steps import LAB, Configure, Netlink, Run, Spawn, Step, Wait, Write

Waiting = Generator[float, None, None]
Say = Callable[[dict[str, str | int | float | bool]], None]
# What this process, or Python, ignores: a command would inherit that.
_DEFAULT = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGPIPE,
    signal.SIGCHLD,
    signal.SIGXFSZ,
)
_NODES_A_PROC = 64
_OWN_FILES = 32  # descriptors that a lab has open besides
_BATCH = 32768  # bytes in one send: well under the smallest default socket buffer


class Process(Struct):
    """A process that the lab started; `status` is None while it lives, negative for a signal (as subprocess)."""

    node: str
    name: str
    pid: int
    log: Path
    began: float
    step: Spawn | None = None
    status: int | None = None
    ended: float = 0.0
    stopped: int = 0  # the signal that told it to end


class Lab(Struct):
    """What a holder knows about its lab."""

    name: str
    home: int  # the sandbox's own network namespace
    host: int  # and its UTS namespace
    folder: Path
    env: dict[str, str]
    nodes: dict[str, Namespace] = field(default_factory=dict)
    sockets: Sockets = field(default_factory=Sockets)
    processes: list[Process] = field(default_factory=list)
    done: list[Step] = field(default_factory=list)  # what stands: the plan as far as it is performed
    indexes: Iterator[int] = field(default_factory=lambda: count(2))  # of interfaces; 1 is lo
    log: TextIO | None = None
    held: dict[str, Held] = field(default_factory=dict)
    sysctls: int = -1  # a /proc/sys, and the node that it was last used in, and in how many it was
    sysctls_of: str = ""
    sysctls_used: int = 0

    def place(self, node: str) -> Namespace:
        """Return a node's namespace; LAB is the sandbox's own."""
        try:
            return self.nodes[node]
        except KeyError as e:
            names = [n for n in self.nodes if n != LAB]
            known = ", ".join([*names[:8], *(["..."] if len(names) > 8 else [])]) or "none"
            raise LabError(f"lab {self.name}: there is no node {node} (nodes: {known})") from e


def begin(name: str, folder: Path) -> Lab:
    """Return a lab without nodes, in the sandbox that this process is in."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    host = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    lab = Lab(name, home, host, folder, dict(os.environ, TMPDIR=f"{furniture.FOLDER}/tmp"))
    lab.nodes[LAB] = Namespace(LAB, home, lab.sockets, lab.nodes, lab.indexes)
    lab.nodes[LAB].mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    configure(lab, [Configure(LAB, LinkSet("lo", up=True))])
    lab.done.clear()
    return lab


def perform(lab: Lab, steps: Sequence[Step], say: Say) -> Waiting:
    """Do what is to be done at once in order, then wait for everything that is awaited."""
    _room(lab, steps)
    at_once = [s for s in steps if (isinstance(s, Configure) and s.at is None) or (isinstance(s, Wait) and s.here)]
    for _, some in groupby(at_once, type):
        group = list(some)
        configure(lab, [s for s in group if isinstance(s, Configure)])
        yield from wait(lab, [s for s in group if isinstance(s, Wait)])
    for step in steps:
        if isinstance(step, Write):
            path = lab.folder / step.path
            with written(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(step.text)
            note(lab, step)
        elif isinstance(step, Run):
            yield from run(lab, step)
        elif isinstance(step, Spawn) and step.at is None:
            spawn(lab, step)
            note(lab, step)
    waits = [s for s in steps if isinstance(s, Wait) and not s.here]
    say({"performed": len(steps) - len(waits), "waiting": len(waits)})
    yield from wait(lab, waits)
    flush(lab)


def configure(lab: Lab, steps: Iterable[Configure]) -> None:
    """Perform requests in order: neighbours for one namespace travel as one batch."""
    batch: list[tuple[Configure, wire.Message]] = []
    size = 0
    inside = LAB  # where this process is: creating a namespace leaves it there, which saves the next step a setns

    def flush() -> None:
        nonlocal size
        if batch:
            _send(lab, batch)
            batch.clear()
            size = 0

    with ExitStack() as back:
        back.callback(linux.setns, lab.home, linux.CLONE_NEWNET)
        for step in steps:
            request = step.request
            if isinstance(request, NamespaceAdd):
                flush()
                _add_namespace(lab, request.name)
                inside = request.name
            elif isinstance(request, SysctlSet):
                flush()
                if inside != step.node:
                    linux.setns(lab.place(step.node).fd, linux.CLONE_NEWNET)
                    inside = step.node
                _set_sysctl(lab, step.node, request)
            elif isinstance(request, Bound):
                flush()
                lab.held = bounds.hold(lab.name, request)
            elif isinstance(request, Control):
                flush()
                control(lab, step.node, request)
                inside = LAB
            else:
                if isinstance(request, LOOKING):
                    flush()
                    lab.place(step.node).stale = True  # the kernel chooses the index of a wireless interface
                message = cast(Netlink, request).encode(lab.place(step.node))
                if batch and (batch[0][0].node != step.node or batch[0][1].family != message.family or size > _BATCH):
                    flush()
                batch.append((step, message))
                size += len(message.body)
                if isinstance(request, LOOKING):
                    flush()  # what follows may be about what this made
                continue
            note(lab, step)
        flush()


def _send(lab: Lab, batch: Sequence[tuple[Configure, wire.Message]]) -> None:
    first, message = batch[0]
    here = lab.place(first.node)
    kind, sock = 0, here.route
    if message.family:
        kind, sock = here.family(message.family), here.generic()
    refused = netlink.transact(sock, [m for _, m in batch], kind)
    failed = {r.at for r in refused}
    for at, (step, _) in enumerate(batch):
        if at not in failed:
            note(lab, step)
    if refused:
        step = batch[refused[0].at][0]
        raise LabError(f"[{step.node}] {step.request}: the kernel says: {refused[0]}")


def _add_namespace(lab: Lab, name: str) -> None:
    try:
        here = lab.nodes[name] = create(name, lab.sockets, lab.nodes, lab.indexes)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            why = "as many as /proc/sys/user/max_net_namespaces allows are there"
            raise LabError(f"[{name}] the kernel makes no more network namespaces: {why}") from e
        raise
    # The symlink is enough for `ip netns` while PID 1 lives, and costs no mount.
    os.symlink(f"/proc/1/fd/{here.fd}", f"/run/netns/{name}")


def _room(lab: Lab, steps: Sequence[Step]) -> None:
    """Raise LabError, before anything is made, when there are more nodes than this process may have descriptors."""
    new = sum(isinstance(s, Configure) and isinstance(s.request, NamespaceAdd) for s in steps)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if new and (count := len(lab.nodes) - 1 + new) > limit - _OWN_FILES:
        raise LabError(
            f"lab {lab.name}: {count} nodes take a descriptor each, and {limit} is the most that a process may have "
            "here: `ulimit -Hn` shows the limit, root raises it (limits.conf(5), LimitNOFILE= of a service)"
        )


def _sysctls(lab: Lab, node: str) -> int:
    """Return a descriptor of /proc/sys for the node that this process is in.

    The kernel finds `net` of a namespace among those of all namespaces that were looked up in the same instance of
    procfs, one after another (fs/proc/proc_sysctl.c: proc_sys_compare): at 4000 nodes that takes 6 ms a write.
    So each instance is used for a few nodes only.
    """
    if lab.sysctls_of != node:
        lab.sysctls_of = node
        lab.sysctls_used += 1
    if lab.sysctls < 0 or lab.sysctls_used > _NODES_A_PROC:
        if lab.sysctls >= 0:
            os.close(lab.sysctls)
        own = f"{furniture.FOLDER}/proc"
        os.makedirs(own, exist_ok=True)
        linux.mount("proc", own, "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        lab.sysctls = os.open(f"{own}/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        linux.detach(own)
        lab.sysctls_used = 1
    return lab.sysctls


def _set_sysctl(lab: Lab, node: str, wanted: SysctlSet) -> None:
    path = wanted.path()
    try:
        fd = os.open(path.removeprefix("/proc/sys/"), os.O_RDWR | os.O_CLOEXEC, dir_fd=_sysctls(lab, node))
        try:
            os.write(fd, wanted.value.encode())
            got = os.pread(fd, 4096, 0).decode()
        finally:
            os.close(fd)
    except FileNotFoundError as e:
        raise LabError(f"[{node}] {wanted}: this kernel has no such parameter in a network namespace ({path})") from e
    except OSError as e:
        raise LabError(f"[{node}] {wanted}: the kernel refuses it: {e.strerror}") from e
    if got.split() != wanted.value.split():
        raise LabError(f"[{node}] {wanted}: accepted, but it reads back as {got.strip()!r}")


def spawn(lab: Lab, step: Spawn) -> Process:
    """Start a long-running process of the plan."""
    folder = lab.folder / step.node if step.node != LAB else lab.folder
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{step.name}.log"
    out = lab.folder / step.stdout if step.stdout else log
    files = [out, log] if step.stdout else [log]
    fds = [os.open("/dev/null", os.O_RDONLY)]
    fds += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644) for path in files]
    try:
        streams = [fds[0], fds[1], fds[-1]]
        if step.forked:
            with _inside(lab, step.node):
                pid = fork(step.argv[0], step.argv[1:], str(lab.folder), streams)
        else:
            pid = start(lab, step.node, step.argv, lab.env, str(lab.folder), streams)
    except OSError as e:
        raise LabError(f"{step}: {e.strerror}: {step.argv[0]}") from e
    finally:
        for fd in fds:
            os.close(fd)
    if step.pinned:
        with suppress(ProcessLookupError):  # it has ended already
            os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
    process = Process(step.node, step.name, pid, log, time.monotonic(), step)
    lab.processes.append(process)
    return process


def start(
    lab: Lab,
    node: str,
    argv: tuple[str, ...] | tuple[bytes, ...],
    env: Mapping[str, str] | Mapping[bytes, bytes],
    cwd: str | bytes,
    fds: Sequence[int],
) -> int:
    """Start a command in a node with these standard streams; its process group is its own."""
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
    # setns around posix_spawn costs 30 us; a preexec_fn would cost 2 ms, for it forces fork instead of vfork.
    with _inside(lab, node or LAB):
        os.chdir(cwd)
        return os.posix_spawnp(
            argv[0],
            argv,
            env,
            file_actions=actions,
            setpgroup=0,
            setsigmask=(),
            setsigdef=_DEFAULT,
        )


def full() -> bool:
    """Say whether no process can be started any more: the lab has as many as its bound allows."""
    try:
        os.posix_spawn("/", ("/",), {})  # which is no program: all but this is done
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def marked(lab: Lab) -> Iterator[int]:
    """Be in a new UTS namespace, by which all that is started meanwhile can be known; yield a descriptor of it."""
    linux.unshare(linux.CLONE_NEWUTS)
    try:
        yield os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        linux.setns(lab.host, linux.CLONE_NEWUTS)


@contextmanager
def _inside(lab: Lab, node: str) -> Iterator[None]:
    place = lab.place(node)
    with netlink.inside(place.fd, lab.home), _own_sys(place, lab.place(LAB)):
        yield


@contextmanager
def _own_sys(here: Namespace, home: Namespace) -> Iterator[None]:
    """Be where /sys/class/net is the node's own: each node has a mount namespace from its first process on."""
    try:
        if here.mounts >= 0:
            linux.setns(here.mounts, linux.CLONE_NEWNS)
        else:
            linux.unshare(linux.CLONE_NEWNS)
            furniture.settle()
            here.mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        yield
    finally:
        linux.setns(home.mounts, linux.CLONE_NEWNS)  # which also leads back to the root directory


def run(lab: Lab, step: Run) -> Waiting:
    """Run a command of the plan to its end; LabError unless it exits 0 in time."""
    name = f"run-{sum(p.name.startswith('run-') for p in lab.processes)}"
    process = spawn(lab, Spawn(step.node, name, step.argv))
    deadline = process.began + step.within
    while process.status is None:
        if time.monotonic() > deadline:
            kill(process, signal.SIGKILL)
            raise LabError(f"{step}: it did not end within {step.within:g} s{tail(process.log)}")
        yield deadline - time.monotonic()
    if process.status:
        raise LabError(f"{step}: it ended with {describe(process.status)}{tail(process.log)}")
    note(lab, step)


def wait(lab: Lab, waits: Sequence[Wait]) -> Waiting:
    """Wait until every probe holds, first of those that only need time, then of those that are urged."""
    yield from _hold(lab, [s for s in waits if not s.urge])
    urged = [s for s in waits if s.urge]
    yield from _urge(lab, urged)
    # While others came, what held may have ended: a station that its access point lost does not come back by itself.
    yield from _urge(lab, [replace(s, urge=s.again) for s in urged if _unmet(lab, s)])


def _hold(lab: Lab, waits: Sequence[Wait]) -> Waiting:
    """Wait until probes hold; a process that dies while something waits for it is reported at once."""
    began = time.monotonic()
    pending = list(waits)
    said: dict[Wait, tuple[str, float]] = {}  # what a probe says, and since when
    pause = 0.001
    while pending:
        seen = [(step, _unmet(lab, step)) for step in pending]
        now = time.monotonic()
        for step, unmet in seen:
            if said.get(step, ("", 0.0))[0] != unmet:
                said[step] = unmet, now
        pending = [s for s, unmet in seen if unmet and not (s.steady and now - said[s][1] >= s.steady)]
        for step, unmet in seen:
            if step in pending:
                _fail(lab, step, unmet, now - began)
            else:
                note(lab, step)
        if pending:
            yield pause
            pause = min(pause * 2, 0.05, *(s.steady / 2 for s in pending if s.steady))


def _urge(lab: Lab, waits: Sequence[Wait]) -> Waiting:
    """Take up as many waits at once as there are processors; what does not hold in time is urged again."""
    queue, began, due = list(waits), dict[Wait, float](), dict[Wait, float]()
    while queue or due:
        while queue and len(due) < (os.cpu_count() or 1):
            step = queue.pop(0)
            began[step], due[step] = time.monotonic(), 0.0
        for step in list(due):
            now = time.monotonic()
            if not (unmet := _unmet(lab, step)):  # in a lab that is up already it holds, and nothing is to be done
                note(lab, step)
                del due[step]
                continue
            _fail(lab, step, unmet, now - began[step])
            if now > due[step]:
                configure(lab, [Configure(step.node, r) for r in (step.again if due[step] else step.urge)])
                due[step] = now + step.every
        if due:
            yield 0.03


def _unmet(lab: Lab, step: Wait) -> str:
    return holds(step.probe, lab.place(step.node), lab.home, lab.folder)


def _fail(lab: Lab, step: Wait, unmet: str, elapsed: float) -> None:
    """Raise LabError when what is awaited can't come any more, or is late."""
    waited = [p for p in lab.processes if step.process and p.name == step.process and p.node == step.node]
    if unmet and waited and waited[-1].status is not None:
        dead = waited[-1]
        raise LabError(f"{step}: {dead.name} ended with {describe(dead.status)}{tail(dead.log)}")
    if unmet and elapsed > step.within:
        logs = tail(waited[-1].log) if waited else ""
        raise LabError(f"{step}: not after {elapsed:.1f} s: {unmet}{logs}")


def control(lab: Lab, node: str, request: Control, patience: float = 15.0) -> None:
    """Send a command to a daemon's control socket; LabError unless it answers OK."""
    with netlink.inside(lab.place(node).fd, lab.home):  # an abstract address is one of a network namespace
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with sock:
        sock.settimeout(patience)
        try:
            sock.bind("")  # an address of the kernel's choice: nothing of it is in a file system
            sock.connect(request.path())
            sock.send(request.command.encode())
            while (answer := sock.recv(4096).decode(errors="replace").strip()).startswith("<"):
                pass  # an event
        except OSError as e:
            raise LabError(f"[{node}] {request}: {e.strerror or 'no answer'}") from e
    if answer != "OK":
        raise LabError(f"[{node}] {request}: the daemon answers {answer or 'nothing'}")


def finish(processes: Sequence[Process], patience: float = 2.0) -> Waiting:
    """Wait until what may end by itself has: a server writes its results after its client's end.

    A signal in the middle of that breaks them: the handler of iperf3 3.12 prints too, and crashes or writes half.
    """
    deadline = time.monotonic() + patience
    while any(p.status is None and p.step and p.step.may_end for p in processes):
        if (left := deadline - time.monotonic()) <= 0:
            return
        yield left


def stop(processes: Sequence[Process], patience: float = 3.0) -> Waiting:
    """End processes newest first, each by its own signal, so that captures flush; SIGKILL after `patience` s.

    Neighbours that are one program end together: twelve captures take as long as one.
    """
    alive = [p for p in reversed(processes) if p.status is None]
    for _, some in groupby(alive, lambda p: p.step.argv[0] if p.step and p.step.stop != signal.SIGTERM else p.pid):
        group = list(some)
        for process in group:
            process.stopped = process.step.stop if process.step else signal.SIGTERM
            kill(process, process.stopped)
        deadline = time.monotonic() + patience
        while ending := [p for p in group if p.status is None]:
            if time.monotonic() > deadline:
                for process in ending:
                    process.stopped = signal.SIGKILL
                    kill(process, signal.SIGKILL)
                deadline += patience
            yield max(0.0, deadline - time.monotonic())


def disconnect(lab: Lab, patience: float = 2.0) -> None:
    """End what still runs and reset the connections of MPTCP hosts: the end of a lab that can end in order.

    The kernel keeps an MPTCP connection whose program is gone, and the network namespace with it, for up to
    a minute (net/mptcp/protocol.c: mptcp_close_timeout), unless its subflows are closed.
    """
    hosts = [place for place in lab.nodes.values() if place.genl is not None]
    if not hosts or os.getpid() != 1:
        return
    others = select.poll()
    left = 0
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdigit() and entry != "1":
                others.register(os.pidfd_open(int(entry)), select.POLLIN)
                left += 1
    with suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # everybody in this PID namespace but us, its PID 1
    deadline = time.monotonic() + patience
    while left and (ended := others.poll(max(0.0, deadline - time.monotonic()) * 1000)):
        for fd, _ in ended:
            others.unregister(fd)
            os.close(fd)
        left -= len(ended)
    for place in hosts:
        with netlink.inside(place.fd, lab.home), netlink.connect(wire.NETLINK_SOCK_DIAG) as sock, suppress(LabError):
            diag.abort(sock)


def drain(lab: Lab, processes: Sequence[Process], quiet: float = 0.35, patience: float = 5.0) -> Waiting:
    """Wait until the files that are being drained into have not grown for `quiet` seconds.

    The kernel hands a packet ring's last block over after at most 250 ms, dumpcap's read timeout; what is still
    in the ring when dumpcap is stopped is lost.
    """
    paths = [lab.folder / p.step.drain for p in processes if p.step and p.step.drain and p.status is None]
    began = changed = time.monotonic()
    sizes: list[int] = []
    while paths and (now := time.monotonic()) < min(changed + quiet, began + patience):
        if (found := [p.stat().st_size if p.exists() else 0 for p in paths]) != sizes:
            sizes, changed = found, now
        yield 0.05


def kill(process: Process, number: int) -> None:
    """Signal a process's whole group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def kill_those_in(namespaces: Collection[tuple[int, int]]) -> int:
    """Kill every process of this PID namespace that has one of these UTS and mount namespaces; return how many had."""
    found = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or entry == "1":
            continue
        with suppress(OSError):  # it has ended
            life = os.pidfd_open(int(entry))
            try:
                own = (os.stat(f"/proc/{entry}/ns/{kind}") for kind in ("uts", "mnt"))
                if any((o.st_dev, o.st_ino) in namespaces for o in own):
                    found += 1
                    signal.pidfd_send_signal(life, signal.SIGKILL)
            finally:
                os.close(life)
    return found


def reap(lab: Lab) -> dict[int, int]:
    """Collect every child that ended and return {pid: exit status}; orphans end here too, for this is PID 1."""
    found: dict[int, int] = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            found[pid] = os.waitstatus_to_exitcode(status)
    for process in lab.processes:
        if process.status is None and process.pid in found:
            process.status, process.ended = found[process.pid], time.monotonic()
    return found


def note(lab: Lab, step: Step) -> None:
    """Record a step as performed: in the lab's memory and, where there is a results folder, in commands.log."""
    lab.done.append(step)
    if lab.log:
        with written(Path(lab.log.name)):
            lab.log.write(f"{time.time():.6f} {step}\n")


def flush(lab: Lab) -> None:
    """Write what was noted."""
    if lab.log:
        with written(Path(lab.log.name)):
            lab.log.flush()


def describe(status: int | None) -> str:
    """Say how a process ended."""
    if status is None:
        return "nothing yet"
    return f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"


def tail(log: Path, lines: int = 12) -> str:
    """Return the end of a log, indented, for an error message."""
    with suppress(OSError):
        rows = log.read_text(errors="replace").splitlines()[-lines:]
        return "".join(f"\n    {log.name}: {row}" for row in rows)
    return ""
