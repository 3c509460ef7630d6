"""The conversation with a lab's holder, and `RunningLab`: what a program does with a lab.

Messages are pickles with a length before them. Both ends belong to one user (SO_PEERCRED is checked), who
may run any command in the lab anyway.
"""

from __future__ import annotations

import array
import os
import pickle
import select
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

from testbed import sandbox
from testbed.errors import LabError, TestbedError

_LENGTH = struct.Struct("=I")
Say = Callable[[dict[str, Any]], None]


def send(connection: socket.socket, message: object, fds: Sequence[int] = ()) -> None:
    """Send one message, with file descriptors."""
    data = pickle.dumps(message)
    # The descriptors travel with the length's bytes, so that the receiver knows where to look for them.
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([_LENGTH.pack(len(data))], rights)
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """Return the next message and its file descriptors; EOFError when the other end is gone."""
    try:
        head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, 8)
        head += _exactly(connection, _LENGTH.size - len(head)) if head else b""
        if not head:
            raise EOFError
        return pickle.loads(_exactly(connection, _LENGTH.unpack(head)[0])), fds  # noqa: S301 (one user, see above)
    except ConnectionError as e:
        raise EOFError from e


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


@dataclass(slots=True)
class RunningLab:
    """A lab that is up; as a context manager it takes the lab down at the end."""

    name: str
    connection: socket.socket

    def __enter__(self) -> RunningLab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def holder(self) -> int:
        """The process id of the lab's PID 1 as seen from here."""
        with connect(self.name) as other:
            return sandbox.peer(other).pid

    def ask(self, verb: str, *arguments: object, say: Say | None = None, fds: Sequence[int] = ()) -> Any:
        """Ask the holder and return its answer; `say` gets its progress, a TestbedError of its is raised here."""
        try:
            send(self.connection, (verb, arguments), fds)
        except (BrokenPipeError, ConnectionResetError) as e:
            raise LabError(f"lab {self.name}: its holder process ended (killed, or `testbed down`)") from e
        return self.await_answer(say)

    def await_answer(self, say: Say | None = None) -> Any:
        """Return the holder's next answer."""
        while True:
            try:
                (kind, value), _ = receive(self.connection)
            except EOFError as e:
                raise LabError(f"lab {self.name}: its holder process ended (killed, or `testbed down`)") from e
            if kind == "error":
                raise value
            if kind == "done":
                return value
            if say is not None:
                say(value)

    def exec(
        self,
        node: str,
        argv: Sequence[str],
        *,
        input: bytes = b"",  # noqa: A002 (subprocess's name for it)
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> CompletedProcess[str]:
        """Run a command in a node to its end; both outputs are captured as text. "" is the sandbox itself."""
        with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
            stdin.write(input)
            stdin.seek(0)
            streams = [f.fileno() for f in (stdin, stdout, stderr)]
            place = cwd if cwd is not None else os.getcwd()
            status = self.ask("exec", node, tuple(argv), dict(os.environ if env is None else env), place, fds=streams)
            texts = []
            for stream in (stdout, stderr):
                stream.seek(0)
                texts.append(stream.read().decode(errors="replace"))
        return CompletedProcess(tuple(argv), status, *texts)

    def down(self) -> None:
        """End every process newest first, then the holder; return when it is gone and the kernel cleans up."""
        with suppress(LabError, OSError):
            end(self.name, self)
        self.connection.close()


def connect(name: str) -> socket.socket:
    """Connect to a lab's holder; LabError when there is none, or when it does not listen yet."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.connect(sandbox.address(name))
    except OSError as e:
        connection.close()
        if name in sandbox.names():
            raise LabError(f"lab {name}: it is coming up or going down at this moment; try again") from e
        up = ", ".join(sandbox.names()) or "none"
        raise LabError(f"lab {name}: no such lab is up (labs of this user: {up}); `testbed up` makes one") from e
    if sandbox.peer(connection).uid != os.geteuid():
        connection.close()
        raise LabError(f"lab {name}: the process that answers belongs to another user; choose another --name")
    return connection


def find(name: str) -> RunningLab:
    """Return a lab that is up."""
    return RunningLab(name, connect(name))


def end(name: str, lab: RunningLab | None = None) -> None:
    """Take a lab down: orderly, and by SIGKILL of its holder when it does not answer within 15 s."""
    with connect(name) as other:
        holder = sandbox.peer(other).pid
    try:
        gone = os.pidfd_open(holder)
    except ProcessLookupError:
        return
    try:
        if lab is not None:
            lab.connection.settimeout(15)
            with suppress(TestbedError, TimeoutError):
                lab.ask("down")
        waiter = select.poll()
        waiter.register(gone, select.POLLIN)
        if not waiter.poll(2000 if lab is not None else 0):
            signal.pidfd_send_signal(gone, signal.SIGKILL)
            if not waiter.poll(10000):
                raise LabError(f"lab {name}: its holder, process {holder}, does not die (uninterruptible sleep?)")
    finally:
        os.close(gone)
