"""PID 1 of a guest's sandbox: starts QEMU, makes the guest this guest, watches it; QEMU ends with it.

QEMU, the keys, the console and the connection that ssh commands share are in namespaces of the keeper's: whatever
kills it or QEMU, the kernel removes the rest.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import select
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct, field

from testbed import sandbox
from testbed.errors import LabError
from testbed.machines import qemu
from testbed.machines.qemu import Boot, Memory, Share, Size, Wires
from testbed.messages import Line, send

FOLDER = Path(sandbox.FOLDER)
PATIENCE = 8  # s without a sign of life, after which a guest hangs
_BOOT, _WARM, _RESTORE = 90.0, 180.0, 15.0  # s: an emulated processor on a machine that is busy with other things
_LOOK = 1.0  # s between two looks at the console of a guest that does not answer
_FAULT = b"testbed: fault: "  # what PID 1 says there when it can't go on; it waits then
_KEYS = ("host_key", "key")


class BrokenStateError(LabError):
    """A saved guest could not be restored; a cold boot may do."""


class PanicError(LabError):
    """A guest's kernel panicked before its init was there; another boot may do."""


class Order(Struct, frozen=True):
    """What the keeper is to run. `restore` is the folder of a saved guest, `save` an empty one for a new such."""

    name: str
    boot: Boot
    size: Size
    shares: Mapping[str, Share]
    code: str = ""  # the digest of what the share `code` holds
    restore: Path | None = None
    save: Path | None = None


class Talk(Struct, eq=False):
    """A conversation in lines: what is heard is JSON, as what QEMU is told; a guest is told words."""

    connection: socket.socket
    inbox: bytes = b""
    lines: list[dict[str, Any]] = field(default_factory=list)

    def say(self, message: Mapping[str, object], fds: tuple[int, ...] = ()) -> None:
        """Send one line, with file descriptors."""
        with suppress(BrokenPipeError, ConnectionResetError):  # QEMU ended: its pidfd tells
            socket.send_fds(self.connection, [json.dumps(message).encode() + b"\n"], fds)

    def tell(self, *words: object) -> None:
        """Send words, one line."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.sendall("\t".join(quote(str(word)) for word in words).encode() + b"\n")

    def hear(self) -> None:
        """Read what has come."""
        with suppress(ConnectionResetError):
            *lines, self.inbox = (self.inbox + self.connection.recv(1 << 16)).split(b"\n")
            self.lines += [json.loads(line) for line in lines if line.strip()]


class Keeper(Struct, eq=False):
    """A guest, from the moment that its QEMU runs."""

    order: Order
    owner: Line | None
    qemu: int
    life: int  # QEMU's pidfd
    qmp: Talk
    agent: Talk
    master: int = 0  # the ssh whose connection the others share
    port: int = 0
    kept: bool = False  # it outlives its owner
    calls: dict[int, str] = field(default_factory=dict)  # by the connection of who called: a command in the guest
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
            send(owner, ("error", e if isinstance(e, LabError) else LabError(f"guest {order.name}: {e}")))
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
        send(owner, ("done", keeper.phases))
        return keeper
    keys = [_spawn("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(FOLDER / k)) for k in _KEYS]
    if order.restore is not None:
        with keeper.phase("restore"):
            _restore(keeper, order.restore)
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
    send(owner, ("done", _told(keeper)))
    return keeper


def _start(order: Order, owner: Line) -> Keeper:
    (qmp, qmp_there), (agent, agent_there) = socket.socketpair(), socket.socketpair()
    (FOLDER / "empty").mkdir()
    console = FOLDER / "console"
    console.touch()
    wires = Wires(qmp_there.fileno(), agent_there.fileno(), str(console), str(FOLDER / "empty"))
    memory = None
    if order.restore is not None:
        memory = Memory(order.restore / "ram", private=True)
    elif order.save is not None:
        memory = Memory(order.save / "ram", private=False)
    words = qemu.argv(order.boot, order.size, wires, order.shares, memory, incoming=order.restore is not None)
    for end in (qmp_there, agent_there):
        end.set_inheritable(True)
    pid = _spawn(*words, log=FOLDER / "qemu.log")
    life = os.pidfd_open(pid)
    qmp_there.close()
    agent_there.close()
    return Keeper(order, owner, pid, life, Talk(qmp), Talk(agent))


def _spawn(*argv: str, log: Path | None = None) -> int:
    out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return os.posix_spawnp(
            argv[0],
            argv,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)],
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
        )
    finally:
        os.close(out)


def _await(
    keeper: Keeper, talk: Talk, wanted: Callable[[dict[str, Any]], bool], seconds: float, what: str
) -> dict[str, Any]:
    """Return the first line of a conversation that is wanted; what comes before it is dropped."""
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(talk.connection, select.POLLIN)
    poll.register(keeper.life, select.POLLIN)
    if keeper.owner is not None:
        poll.register(keeper.owner.connection, select.POLLRDHUP)
    while True:
        while talk.lines:
            if wanted(found := talk.lines.pop(0)):
                return found
        left = deadline - time.monotonic()
        ready = [fd for fd, _ in poll.poll(max(0, 1000 * min(left, _LOOK)))]
        if talk.connection.fileno() in ready:
            talk.hear()
        if keeper.owner is not None and keeper.owner.connection.fileno() in ready:
            os._exit(0)  # nobody waits for this guest any more
        if keeper.life in ready and not talk.lines:
            raise LabError(_death(keeper, os.waitpid(keeper.qemu, 0)[1]))
        if not ready and _FAULT in (FOLDER / "console").read_bytes():  # its init can't go on
            raise LabError(_tail(keeper.order.name, f"it did not {what}"))
        if not ready and left <= _LOOK:
            raise LabError(_tail(keeper.order.name, f"it did not {what} within {seconds:g} s"))


def _ask(keeper: Keeper, command: str, **arguments: object) -> Any:
    """Give QEMU a command (docs/interop/qmp-spec) and return its answer."""
    keeper.qmp.say({"execute": command, "arguments": arguments, "id": command})
    answer = _await(keeper, keeper.qmp, lambda m: m.get("id") == command, 20, f"answer QMP {command}")
    if "error" in answer:
        raise LabError(f"guest {keeper.order.name}: QEMU refuses {command}: {answer['error']['desc']}")
    return answer["return"]


def _tell(keeper: Keeper, verb: str, *words: object, seconds: float = 20) -> None:
    """Have the guest's PID 1 do something (provision/testbed-guest.c)."""
    keeper.agent.tell(verb, *words)
    answer = _await(keeper, keeper.agent, lambda m: m.get("done") == verb, seconds, f"answer to {verb}")
    if "error" in answer:
        raise LabError(f"guest {keeper.order.name}: {verb}: {answer['error']}")


def _mount(keeper: Keeper, slot: str) -> None:
    share = keeper.order.shares[slot]
    _tell(keeper, "mount", slot, share.at, int(share.writable))


def _give(keeper: Keeper, file: Path, flags: int) -> None:
    fd = os.open(file, flags | os.O_CLOEXEC, 0o600)
    keeper.qmp.say({"execute": "getfd", "arguments": {"fdname": "state"}, "id": "getfd"}, (fd,))
    os.close(fd)
    _await(keeper, keeper.qmp, lambda m: m.get("id") == "getfd", 20, "take a file")


def _restore(keeper: Keeper, folder: Path) -> None:
    """Load the devices; the memory is there already, as a private mapping of the saved file."""
    try:
        _give(keeper, folder / "state", os.O_RDONLY)
        _ask(keeper, "migrate-incoming", uri="fd:state")
        while _ask(keeper, "query-status")["status"] == "inmigrate":
            time.sleep(0.002)
        _ask(keeper, "cont")
        # A guest whose saved memory is damaged would not answer.
        _tell(keeper, "ping", seconds=_RESTORE)
    except (LabError, OSError) as e:
        raise BrokenStateError(f"{e}") from e


def _boot(keeper: Keeper) -> None:
    try:
        with keeper.phase("boot"):
            _await(keeper, keeper.agent, lambda m: m.get("event") == "hello", _BOOT, "boot")
    except LabError as e:
        if b"Kernel panic" in (FOLDER / "console").read_bytes():
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
            _await(keeper, keeper.agent, lambda m: m.get("event") == "warm", _WARM, "import testbed")
            _tell(keeper, "unmount", code.at)  # a mounted share can't be saved
    with keeper.phase("save"):
        _ask(keeper, "stop")
        _give(keeper, folder / "state", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        _ask(keeper, "migrate", uri="fd:state")
        while (status := _ask(keeper, "query-migrate").get("status")) != "completed":
            if status in ("failed", "cancelled"):
                raise LabError(f"guest {keeper.order.name}: QEMU could not save it (see `query-migrate`: {status})")
            time.sleep(0.002)
        _ask(keeper, "quit")
        os.waitpid(keeper.qemu, 0)


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
    said = _ask(keeper, "human-monitor-command", **{"command-line": "info usernet"})
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
            raise LabError(_tail(keeper.order.name, f"ssh does not reach it: {said or 'no answer'}"))
    os.close(ended)


def _told(keeper: Keeper) -> dict[str, Any]:
    order = keeper.order
    return {
        "name": order.name,
        "size": order.size,
        "accel": order.boot.accel,
        "port": keeper.port,
        "shared": keeper.master != 0,
        "restored": order.restore is not None,
        "phases": keeper.phases,
        "shares": dict(order.shares),
        "qemu": keeper.qemu,
    }


def _watch(keeper: Keeper, listener: socket.socket) -> None:
    """Serve the command line until the guest ends, is ended, or gives no sign of life."""
    poll = select.poll()
    talkers: dict[int, Line] = {}
    for fd in (listener.fileno(), keeper.life, keeper.agent.connection.fileno(), keeper.qmp.connection.fileno()):
        poll.register(fd, select.POLLIN)
    if keeper.owner is not None:
        poll.register(keeper.owner.connection, select.POLLRDHUP)
    missed, tick = 0, time.monotonic()
    while True:
        ready = {fd for fd, _ in poll.poll(max(0, 1000 * (tick + 1 - time.monotonic())))}
        now = time.monotonic()
        if keeper.agent.connection.fileno() in ready:
            keeper.agent.hear()
            keeper.agent.lines.clear()
            missed = 0
        if now >= tick + 1:
            # Seconds in which this process did not run itself are not counted: the host may be stopped or overloaded.
            missed, tick = missed + 1, now
            keeper.agent.tell("ping")
        if keeper.qmp.connection.fileno() in ready:
            keeper.qmp.hear()
            keeper.qmp.lines.clear()
        if keeper.owner is not None and keeper.owner.connection.fileno() in ready:
            if not keeper.kept:
                return
            poll.unregister(keeper.owner.connection)
            keeper.owner = None
        death = _ended(keeper, missed)
        if death:
            for line in (*talkers.values(), *([keeper.owner] if keeper.owner else [])):
                with suppress(OSError):
                    line.send(("dead", death))
            return
        if listener.fileno() in ready:
            line = Line(listener.accept()[0])
            line.connection.setblocking(False)
            talkers[line.connection.fileno()] = line
            poll.register(line.connection, select.POLLIN)
        for fd in ready & talkers.keys():
            if _serve(keeper, talkers[fd]) == "gone":
                poll.unregister(fd)
                talkers.pop(fd).close()
                if left := keeper.calls.pop(fd, None):
                    keeper.agent.tell("hangup", left)


def _serve(keeper: Keeper, line: Line) -> str:
    """Answer one request; say "gone" when nobody is there any more."""
    try:
        found = line.receive()
    except (EOFError, LabError):
        return "gone"
    if found is None:
        return ""
    verb, *rest = found[0]
    if sandbox.peer(line.connection).uid != os.geteuid():
        return "gone"
    if verb == "call":
        keeper.calls[line.connection.fileno()] = rest[0]
    elif verb == "ended":
        keeper.calls.pop(line.connection.fileno(), None)
    elif verb == "signal":
        keeper.agent.tell("signal", *rest)
    elif verb == "keep":
        keeper.kept = True
    elif verb == "stop":
        os._exit(0)
    with suppress(OSError):
        line.send(("done", _told(keeper)))
    return ""


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
    if not death and missed > PATIENCE:
        death = _tail(keeper.order.name, f"it hangs: no sign of life for {PATIENCE} s, so it was ended")
    return death


def _death(keeper: Keeper, status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    how = f"QEMU was killed by {signal.Signals(-code).name}" if code < 0 else f"QEMU ended with {code}"
    said = (FOLDER / "qemu.log").read_text(errors="replace").strip()
    if b"Kernel panic" in (FOLDER / "console").read_bytes():
        how = "its kernel panicked"
    elif code == 0:
        how = "it was powered off"
    return _tail(keeper.order.name, how + (f": {said}" if said else ""))


def last_rows(console: bytes, rows: int = 20) -> str:
    """Return the end of a console, for people; a fault of the kernel's and what came before it if there is one."""
    text = [r for r in console.decode(errors="replace").replace("\r", "").splitlines() if r.strip()]
    fault = next((n for n, row in enumerate(text) if qemu.kernel_faults([row])), len(text))
    end = text[max(0, fault - 5) :] if fault < len(text) else text
    end = [*end[: rows // 2], "...", *end[-rows // 2 :]] if len(end) > rows and fault < len(text) else end[-rows:]
    return "".join(f"\n    {row}" for row in end) or " it is empty"


def _tail(name: str, why: str) -> str:
    return f"guest {name}: {why}; the end of its console:{last_rows((FOLDER / 'console').read_bytes())}"
