"""PID 1 of a guest's sandbox: starts QEMU, makes the guest this guest, watches it; QEMU ends with it.

QEMU, the keys, the console and the connection that ssh commands share are in namespaces of the keeper's: whatever
kills it or QEMU, the kernel removes the rest.
"""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import secrets
import select
import selectors
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from io import FileIO
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote

from msgspec import Raw, Struct, field
from msgspec.json import Decoder

from testbed.errors import LabError
from testbed.lab import furniture
from testbed.lab.answers import Dead
from testbed.lab.listening import Listening
from testbed.lab.messages import BROKEN, Line, close
from testbed.linux.kernel_log import kernel_faults
from testbed.machines.guest import asking, confined, lent, qemu, shared
from testbed.machines.guest.asking import (
    LONGEST,
    About,
    BrokenStateError,
    Call,
    Ended,
    GuestSaid,
    Keep,
    PanicError,
    QemuSaid,
    Signal,
    Status,
    Stop,
)
from testbed.machines.guest.console import Console, opened
from testbed.machines.guest.qemu import Boot, Memory, Share, Size, Wires

FOLDER = Path(furniture.FOLDER)
PATIENCE = 8  # s without a sign of life, after which a guest hangs
_BOOT, _WARM, _RESTORE = 90.0, 180.0, 15.0  # s: an emulated processor on a machine that is busy with other things
_LOOK = 1.0  # s between two looks at the console of a guest that does not answer
_FAULT = b"testbed: fault: "  # what PID 1 says there when it can't go on; it waits then
_KEYS = ("host_key", "key")
_LINE = 1 << 16  # bytes of a line of QEMU's or the guest's
S = TypeVar("S", QemuSaid, GuestSaid)


class Order(Struct, frozen=True):
    """What the keeper is to run: `files` are the descriptors that `boot` names, `save` is an empty folder."""

    name: str
    boot: Boot
    size: Size
    shares: Mapping[str, Share]
    files: tuple[int, ...] = ()
    user: int = 0  # whom QEMU is run as, 0: who runs this
    code: str = ""  # the digest of what the share `code` holds
    restore: Saved | None = None
    save: Path | None = None


class Saved(Struct, frozen=True):
    """The files of a saved guest, as descriptors."""

    ram: int
    state: int


class Talk(Struct, Generic[S], eq=False):
    """A conversation in lines: what is heard is JSON, as what QEMU is told; a guest is told words.

    The guest is not trusted: a line that is too long, or that is not understood, is dropped.
    """

    connection: socket.socket
    decoder: Decoder[S]
    inbox: bytes = b""
    lines: list[S] = field(default_factory=list)
    skips: bool = False  # until the end of a line that is too long

    def say(self, message: Mapping[str, object], fds: tuple[int, ...] = ()) -> None:
        """Send one line, with file descriptors."""
        with suppress(BrokenPipeError, ConnectionResetError):  # QEMU ended: its pidfd tells
            socket.send_fds(self.connection, [json.dumps(message).encode() + b"\n"], fds)

    def tell(self, *words: object) -> None:
        """Send words, one line; one who does not listen must not stop us, and hangs (PATIENCE)."""
        with suppress(BrokenPipeError, ConnectionResetError, BlockingIOError):
            line = "\t".join(quote(str(word)) for word in words).encode() + b"\n"
            self.connection.sendall(line, socket.MSG_DONTWAIT)

    def hear(self) -> None:
        """Read what has come."""
        with suppress(ConnectionResetError):
            *lines, self.inbox = (self.inbox + self.connection.recv(_LINE)).split(b"\n")
            if lines and self.skips:
                del lines[0]
                self.skips = False
            if len(self.inbox) > _LINE:
                self.inbox, self.skips = b"", True
            for line in lines:
                with suppress(*BROKEN):
                    self.lines.append(self.decoder.decode(line))


class Keeper(Struct, eq=False):
    """A guest, from the moment that its QEMU runs."""

    order: Order
    owner: Line | None
    qemu: int
    life: int  # QEMU's pidfd
    qmp: Talk[QemuSaid]
    agent: Talk[GuestSaid]
    console: Console
    said: Console  # by QEMU itself
    master: int = 0  # the ssh whose connection the others share
    port: int = 0
    kept: bool = False  # it outlives its owner
    calls: dict[Line, str] = field(default_factory=dict)  # by the connection of who called: a command in the guest
    began: float = field(default_factory=time.monotonic)
    phases: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a part of the start."""
        began = time.monotonic()
        yield
        self.phases[name] = time.monotonic() - began


def serve(order: Order) -> Callable[[socket.socket, socket.socket], None]:
    """Return the body of a sandbox that runs a guest; tells the owner when it can be used, or why it can't."""

    def body(listener: socket.socket, owner: socket.socket) -> None:
        try:
            keeper = _begin(order, owner)
        except (LabError, OSError) as e:
            asking.answer(Line(owner), e if isinstance(e, LabError) else LabError(f"guest {order.name}: {e}"))
            return
        if order.save is None:
            _watch(keeper, listener)

    return body


def _begin(order: Order, owner: socket.socket) -> Keeper:
    """Start a guest, or save one, and tell the owner."""
    keeper = _start(order, Line(owner))
    with keeper.phase("qemu"):
        keeper.qmp.say({"execute": "qmp_capabilities"})
        _ask(keeper, "migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
    if order.save is not None:
        _save(keeper, order.save)
        asking.answer(Line(owner), keeper.phases)
        return keeper
    keys = [_spawn("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(FOLDER / k)) for k in _KEYS]
    if order.restore is not None:
        with keeper.phase("restore"):
            _restore(keeper, order.restore.state)
    else:
        _boot(keeper)
    for key in keys:
        os.waitpid(key, 0)
    with keeper.phase("activate"):
        _activate(keeper)
    with keeper.phase("ssh"):
        _connect(keeper)
    if order.restore is None:
        _warm(keeper)
    asking.answer(Line(owner), _told(keeper))
    return keeper


def _start(order: Order, owner: Line) -> Keeper:
    pairs = [socket.socketpair() for _ in range(4)]
    (qmp, agent, heard, said), theirs = ([pair[end] for pair in pairs] for end in (0, 1))
    # QEMU, which is somebody else, goes through these folders whatever our umask is.
    os.umask(0o022)
    FOLDER.chmod(0o755)
    (FOLDER / "empty").mkdir()
    console = opened(heard, FOLDER / "console")
    wires = Wires(theirs[0].fileno(), theirs[1].fileno(), theirs[2].fileno(), str(FOLDER / "empty"))
    confined.admit(order.user)
    shares = {slot: shared.bound(share, FOLDER / "shares" / slot, order.user) for slot, share in order.shares.items()}
    memory, ram = None, order.restore.ram if order.restore is not None else -1
    if order.save is not None:
        ram = _room(order.save / "ram", order.size.memory << 20, order.user)
    if ram >= 0:
        memory = Memory(Path(f"/proc/self/fd/{ram}"), private=order.save is None)
    words = qemu.argv(order.boot, order.size, wires, shares, memory, incoming=order.restore is not None)
    fds = (*(end.fileno() for end in theirs[:3]), *order.files, *([ram] if order.save is not None else []))
    pid, asks = confined.start(words, order.user, fds, theirs[3].fileno(), lends=order.restore is not None)
    life = os.pidfd_open(pid)
    for end in theirs:
        end.close()
    for fd in order.files:
        os.close(fd)
    log = opened(said, FOLDER / "qemu.log", head=1 << 14, tail=1 << 14)
    keeper = Keeper(order, owner, pid, life, Talk(qmp, asking.QEMU), Talk(agent, asking.GUEST), console, log)
    if memory is not None and order.restore is not None:
        with closing(FileIO(asks)) if asks >= 0 else nullcontext():
            if asks < 0 or not lent.lend(asks, str(memory.file), ram, life, _RESTORE):
                raise BrokenStateError(_tail(keeper, "QEMU does not take the memory of the saved guest"))
    return keeper


def _room(file: Path, size: int, user: int) -> int:
    """Make the file of a memory that is to be saved; it is QEMU's until that is done."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(fd, size)
    if user:
        os.fchown(fd, user, user)
    return fd


def _spawn(*argv: str, log: Path | None = None) -> int:
    out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        pid = os.posix_spawnp(
            argv[0],
            argv,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)],
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
        )
    finally:
        os.close(out)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # what it says is in memory
    return pid


def _await(keeper: Keeper, talk: Talk[S], wanted: Callable[[S], bool], seconds: float, what: str) -> S:
    """Return the first line of a conversation that is wanted; what comes before it is dropped."""
    look, deadline = time.monotonic() + _LOOK, time.monotonic() + seconds
    poll = select.poll()
    streams: dict[int, Console] = {s.source.fileno(): s for s in (keeper.console, keeper.said)}
    for fd in (talk.connection.fileno(), keeper.life, *streams):
        poll.register(fd, select.POLLIN)
    if keeper.owner is not None:
        poll.register(keeper.owner.connection, select.POLLRDHUP)
    while True:
        while talk.lines:
            if wanted(found := talk.lines.pop(0)):
                return found
        left = deadline - time.monotonic()
        ready = [fd for fd, _ in poll.poll(max(0, 1000 * min(left, _LOOK)))]
        for fd in streams.keys() & set(ready):
            if not streams[fd].hear():
                poll.unregister(fd)
        if talk.connection.fileno() in ready:
            talk.hear()
        if keeper.owner is not None and keeper.owner.connection.fileno() in ready:
            os._exit(0)  # nobody waits for this guest any more
        if keeper.life in ready and not talk.lines:
            raise LabError(_death(keeper, os.waitpid(keeper.qemu, 0)[1]))
        if time.monotonic() >= look and (look := time.monotonic() + _LOOK) and _FAULT in keeper.console.text():
            raise LabError(_tail(keeper, f"it did not {what}"))  # its init can't go on
        if time.monotonic() > deadline:
            raise LabError(_tail(keeper, f"it did not {what} within {seconds:g} s"))


def _ask(keeper: Keeper, command: str, **arguments: object) -> Raw:
    """Give QEMU a command (docs/interop/qmp-spec) and return its answer."""
    keeper.qmp.say({"execute": command, "arguments": arguments, "id": command})
    answer = _await(keeper, keeper.qmp, lambda m: m.id == command, 20, f"answer QMP {command}")
    if answer.error is not None:
        raise LabError(f"guest {keeper.order.name}: QEMU refuses {command}: {answer.error.desc}")
    return answer.result


def _status(keeper: Keeper, query: str) -> str:
    """Return the status that one of QEMU's queries answers with, "" when it has none yet."""
    return asking.understood(asking.STATUS, _ask(keeper, query)).status


def _tell(keeper: Keeper, verb: str, *words: object, seconds: float = 20) -> None:
    """Have the guest's PID 1 do something (provision/testbed-guest.c)."""
    keeper.agent.tell(verb, *words)
    answer = _await(keeper, keeper.agent, lambda m: m.done == verb, seconds, f"answer to {verb}")
    if answer.error is not None:
        raise LabError(f"guest {keeper.order.name}: {verb}: {answer.error}")


def _mount(keeper: Keeper, slot: str) -> None:
    share = keeper.order.shares[slot]
    _tell(keeper, "mount", slot, share.at, int(share.writable))


def _give(keeper: Keeper, fd: int) -> None:
    keeper.qmp.say({"execute": "getfd", "arguments": {"fdname": "state"}, "id": "getfd"}, (fd,))
    os.close(fd)
    _await(keeper, keeper.qmp, lambda m: m.id == "getfd", 20, "take a file")


def _restore(keeper: Keeper, state: int) -> None:
    """Load the devices; the memory is there already, as a private mapping of the saved file."""
    try:
        _give(keeper, state)
        _ask(keeper, "migrate-incoming", uri="fd:state")
        while _status(keeper, "query-status") == "inmigrate":
            time.sleep(0.002)
        _ask(keeper, "cont")
        # A guest whose saved memory is damaged would not answer.
        _tell(keeper, "ping", seconds=_RESTORE)
    except (LabError, OSError) as e:
        raise BrokenStateError(f"{e}") from e


def _boot(keeper: Keeper) -> None:
    try:
        with keeper.phase("boot"):
            _await(keeper, keeper.agent, lambda m: m.event == "hello", _BOOT, "boot")
    except LabError as e:
        if b"Kernel panic" in keeper.console.text():
            raise PanicError(f"{e}") from e
        raise


def _save(keeper: Keeper, folder: Path) -> None:
    """Boot, import, and save; nothing that makes a guest this guest is in it yet."""
    _boot(keeper)
    with keeper.phase("warm"):
        _tell(keeper, "settle", seconds=_BOOT)
        if code := keeper.order.shares.get("code"):
            _mount(keeper, "code")
            _warm(keeper)
            _await(keeper, keeper.agent, lambda m: m.event == "warm", _WARM, "import testbed")
            _tell(keeper, "unmount", code.at)  # a mounted share can't be saved
    with keeper.phase("save"):
        _ask(keeper, "stop")
        _give(keeper, os.open(folder / "state", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        _ask(keeper, "migrate", uri="fd:state")
        while (status := _status(keeper, "query-migrate")) != "completed":
            if status in ("failed", "cancelled"):
                raise LabError(f"guest {keeper.order.name}: QEMU could not save it (see `query-migrate`: {status})")
            time.sleep(0.002)
        _ask(keeper, "quit")
        os.waitpid(keeper.qemu, 0)
        os.chown(folder / "ram", os.geteuid(), os.getegid())  # nobody but us writes to it from here on


def _warm(keeper: Keeper) -> None:
    if code := keeper.order.shares.get("code"):
        keeper.agent.tell("warm", keeper.order.code, code.at)


def _activate(keeper: Keeper) -> None:
    public = (FOLDER / "host_key.pub").read_text()
    private = for_dropbear((FOLDER / "host_key").read_text()).hex()
    seed, machine_id, user = secrets.token_hex(64), uuid.uuid4().hex, (FOLDER / "key.pub").read_text()
    _tell(keeper, "activate", time.time(), seed, machine_id, keeper.order.name, private, user, seconds=60)
    for slot in keeper.order.shares:
        _mount(keeper, slot)
    (FOLDER / "known_hosts").write_text(f"testbed {public}")
    said = asking.understood(asking.TEXT, _ask(keeper, "human-monitor-command", **{"command-line": "info usernet"}))
    found = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", said)
    if found is None:
        raise LabError(f"guest {keeper.order.name}: QEMU tells no forwarded port: {said}")
    keeper.port = int(found[1])


def for_dropbear(key: str) -> bytes:
    """Return an Ed25519 key of ssh-keygen's as Dropbear's server reads it.

    OpenSSH's (its PROTOCOL.key): a magic, four strings (RFC 4251, section 5) and a count, then a string that holds two
    check numbers, type, public key, both keys and a comment. Dropbear's: type and both keys.
    """
    _, rest = _strings(base64.b64decode(key.split("-----")[2])[len(b"openssh-key-v1\0") :], 3)
    _, rest = _strings(rest[4:], 1)
    (kind, _, both), _ = _strings(rest[4 + 8 :], 3)
    return kind + both


def _strings(data: bytes, count: int) -> tuple[list[bytes], bytes]:
    """Return strings of SSH's wire format, each with its length before it, and what follows them."""
    found = []
    for _ in range(count):
        end = 4 + int.from_bytes(data[:4], "big")
        found.append(data[:end])
        data = data[end:]
    return found, data


def ssh(folder: Path, port: int) -> tuple[str, ...]:
    """Return ssh's words for a guest whose keys are in `folder`; it shares the keeper's connection if that stands."""
    options = {
        "UserKnownHostsFile": str(folder / "known_hosts"),
        "GlobalKnownHostsFile": "none",
        "HostKeyAlias": "testbed",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "KexAlgorithms": "curve25519-sha256",  # those with lattices take an emulated processor longer
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "ControlPath": str(folder / "ssh"),
    }
    words = [w for name, value in options.items() for w in ("-o", f"{name}={value}")]
    return ("ssh", "-F", "none", "-i", str(folder / "key"), "-p", str(port), *words, "root@127.0.0.1")


def _connect(keeper: Keeper) -> None:
    """Make the connection that every command shares: a new one costs an emulated processor a key exchange."""
    *words, where = ssh(FOLDER, keeper.port)
    keeper.master = _spawn(*words, "-M", "-N", "-o", "ServerAliveInterval=0", where, log=FOLDER / "ssh.log")
    deadline = time.monotonic() + 30
    ended = os.pidfd_open(keeper.master)
    while not (FOLDER / "ssh").exists():
        if select.select([ended, keeper.life], [], [], 0.003)[0] or time.monotonic() > deadline:
            said = (FOLDER / "ssh.log").read_text().strip()
            raise LabError(_tail(keeper, f"ssh does not reach it: {said or 'no answer'}"))
    os.close(ended)


def _told(keeper: Keeper) -> About:
    order = keeper.order
    return About(
        name=order.name,
        size=order.size,
        accel=order.boot.accel,
        port=keeper.port,
        shared=keeper.master != 0,
        restored=order.restore is not None,
        phases=keeper.phases,
        shares=asking.rows(order.shares),
        qemu=keeper.qemu,
    )


def _watch(keeper: Keeper, listener: socket.socket) -> None:
    """Serve the command line until the guest ends, is ended, or gives no sign of life."""
    with selectors.DefaultSelector() as selector:
        listening = Listening(selector, listener, LONGEST, lambda line: line in keeper.calls or bool(line.outbox))
        streams = {stream.source: stream for stream in (keeper.console, keeper.said)}
        selector.register(keeper.life, selectors.EVENT_READ)
        for source in (keeper.agent.connection, keeper.qmp.connection, *streams):
            selector.register(source, selectors.EVENT_READ)
        if keeper.owner is not None:
            selector.register(keeper.owner.connection, selectors.EVENT_READ)
        missed, tick = 0, time.monotonic()
        while True:
            listening.settle()
            ready = {key.fileobj: key for key, _ in selector.select(max(0, tick + 1 - time.monotonic()))}
            now = time.monotonic()
            for source in streams.keys() & ready.keys():
                if not streams[source].hear():
                    selector.unregister(source)
            if keeper.agent.connection in ready:
                keeper.agent.hear()
                keeper.agent.lines.clear()
                missed = 0
            if now >= tick + 1:
                # Seconds in which this process did not run itself are not counted: the host may be stopped or
                # overloaded.
                missed, tick = missed + 1, now
                keeper.agent.tell("ping")
            if keeper.qmp.connection in ready:
                keeper.qmp.hear()
                keeper.qmp.lines.clear()
            if keeper.owner is not None and keeper.owner.connection in ready and _hung_up(keeper.owner):
                if not keeper.kept:
                    return
                selector.unregister(keeper.owner.connection)
                keeper.owner = None
            if death := _ended(keeper, missed):
                for line in (*listening.lines, *([keeper.owner] if keeper.owner else [])):
                    with suppress(OSError):
                        asking.answer(line, Dead(death))
                return
            if listener in ready:
                _, gone = listening.accept()
                if gone is not None:
                    _hang_up(keeper, listening, gone)
            for line in [key.data for key in ready.values() if key.data in listening.lines]:
                if not _serve(keeper, listening, line):
                    _hang_up(keeper, listening, line)


def _hung_up(owner: Line) -> bool:
    """Say whether the owner is gone; it has nothing to say before that."""
    try:
        return not owner.connection.recv(_LINE, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _hang_up(keeper: Keeper, listening: Listening, line: Line) -> None:
    listening.drop(line)
    if left := keeper.calls.pop(line, None):
        keeper.agent.tell("hangup", left)


def _serve(keeper: Keeper, listening: Listening, line: Line) -> bool:
    """Answer one request; False when nobody is there any more, or not understood."""
    try:
        line.flush()
        if line.outbox or (found := line.receive()) is None:
            return True
        close(found[1])
        listening.heard(line)
        question = asking.decode(found[0])
        match question:
            case Call(name):
                keeper.calls[line] = name
            case Ended():
                keeper.calls.pop(line, None)
            case Signal(name, number):
                keeper.agent.tell("signal", name, number)
            case Keep():
                keeper.kept = True
            case Stop():
                os._exit(0)
            case Status():
                pass
        asking.answer(line, _told(keeper))
    except (EOFError, ConnectionError):
        return False
    except LabError as e:
        with suppress(OSError):
            asking.answer(line, e)
        return False
    return True


def _ended(keeper: Keeper, missed: int) -> str:
    """Reap; say how the guest ended if it did."""
    death = ""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        if pid == keeper.qemu:
            death = _death(keeper, status)
        elif pid == keeper.master:
            keeper.master = 0  # ssh commands have connections of their own from here on
    written = [FOLDER / "shares" / slot for slot, share in keeper.order.shares.items() if share.writable]
    if not death and any(map(shared.is_full, written)):
        death = _tail(keeper, f"it fills the disk with its results ({shared.RESERVE >> 20} MiB are left): it was ended")
    if not death and missed > PATIENCE:
        death = _tail(keeper, f"it hangs: no sign of life for {PATIENCE} s, so it was ended")
    return death


def _death(keeper: Keeper, status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    how = f"QEMU was killed by {signal.Signals(-code).name}" if code < 0 else f"QEMU ended with {code}"
    said = keeper.said.text().decode(errors="replace").strip()
    if b"Kernel panic" in keeper.console.text():
        how = "its kernel panicked"
    elif code == 0:
        how = "it was powered off"
    return _tail(keeper, how + (f": {said}" if said else ""))


def last_rows(console: bytes, rows: int = 20) -> str:
    """Return the end of a console, for people; a fault of the kernel's and what came before it if there is one."""
    text = [r for r in console.decode(errors="replace").replace("\r", "").splitlines() if r.strip()]
    fault = next((n for n, row in enumerate(text) if kernel_faults([row])), len(text))
    end = text[max(0, fault - 5) :] if fault < len(text) else text
    end = [*end[: rows // 2], "...", *end[-rows // 2 :]] if len(end) > rows and fault < len(text) else end[-rows:]
    return "".join(f"\n    {row}" for row in end) or " it is empty"


def _tail(keeper: Keeper, why: str) -> str:
    return f"guest {keeper.order.name}: {why}; the end of its console:{last_rows(keeper.console.text())}"
