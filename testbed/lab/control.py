"""`RunningLab`: control a lab that is up."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from subprocess import CompletedProcess
from types import TracebackType
from typing import Any

from msgspec import Struct, convert

from testbed.errors import LabError
from testbed.lab import answers, asked, asking, ending, reach, sources
from testbed.lab.answers import Done, Failed, NotUnderstoodError, Progress
from testbed.lab.asked import Asked
from testbed.lab.ending import PATIENCE
from testbed.lab.messages import receive, send
from testbed.lab.reach import ANSWERS, SilentError
from testbed.linux import cgroups, unix
from testbed.metrics.records import Held

Say = Callable[[dict[str, Any]], None]


class RunningLab(Struct):
    """A lab that is up; as a context manager it takes the lab down at the end.

    Each request uses its own connection: threads may share this object, and interrupting a request (Ctrl-C in `exec`)
    ends only that. `owner` is the connection with which a lab ends unless it is kept.
    """

    name: str
    holder: int  # the process ID of the lab's PID 1 in this namespace
    life: FileIO  # its pidfd
    owner: socket.socket | None = None

    def __enter__(self) -> RunningLab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def await_up(self, say: Say | None = None) -> None:
        """Wait until a lab that was just launched is up; raise its holder's error if it fails."""
        assert self.owner is not None, "only the program that launches a lab is told"
        answer(self.name, self.owner, None, say)

    def ask(
        self,
        question: Asked,
        *,
        say: Say | None = None,
        fds: Sequence[int] = (),
        patience: float | None = None,
    ) -> Any:
        """Send a request and return the holder's answer, or raise its error; `say` gets its progress.

        Raise SilentError if the holder sends nothing for `patience` seconds.
        """
        message = asked.encode(question)
        with connect(self.name, patience) as connection:
            if unix.peer(connection).pid != self.holder:
                raise LabError(reach.ended(self.name))  # another lab has its name now
            try:
                send(connection, message, fds)
            except (BrokenPipeError, ConnectionResetError) as e:
                raise LabError(reach.ended(self.name)) from e
            try:
                return answer(self.name, connection, question, say)
            except NotUnderstoodError as e:
                raise LabError(f"{e} (this is testbed {sources.version()})") from e
            except TimeoutError as e:
                raise SilentError(reach.silent(self.name, self.holder)) from e

    def status(self) -> dict[str, Any]:
        """Return the state of the lab, its nodes and its processes."""
        answer: dict[str, Any] = self.ask(asked.Status(), patience=ANSWERS)
        return answer

    def bounds(self) -> dict[str, Held]:
        """Return the bounds of the lab (`resources`): what enforces each, and how often it took effect."""
        return convert(self.status()["resources"], dict[str, Held])

    def exec(
        self,
        node: str,
        argv: Sequence[str],
        *,
        input: bytes = b"",  # noqa: A002 (subprocess's name for it)
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> CompletedProcess[str]:
        """Run a command in a node ("" for the sandbox itself) to its end; capture both outputs as text.

        It runs in `cwd`; without it, in this process's working directory if the lab has it, else in /.
        """
        folders = ["/"] if cwd is None else [cwd]
        if cwd is None:
            with suppress(FileNotFoundError):  # a folder that was removed
                folders.insert(0, os.getcwd())
        question = asking.command(node, argv, os.environ if env is None else env, folders)
        # Files in memory: making temporary files takes as long as starting a program.
        streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr")]
        try:
            written = 0
            while written < len(input):
                written += os.pwrite(streams[0], input[written:], written)
            status = self.ask(question, fds=streams)
            texts = [os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace") for fd in streams[1:]]
        finally:
            for fd in streams:
                os.close(fd)
        return CompletedProcess(tuple(argv), status, *texts)

    def keep(self) -> None:
        """Keep the lab running after the end of this process."""
        self.ask(asked.Keep())
        if self.owner is not None:
            self.owner.close()
            self.owner = None

    def down(self, patience: float = PATIENCE) -> None:
        """End all processes, newest first, then the holder; after `patience` s, kill them.

        Return when nothing of the lab is left.
        """
        if self.life.closed:
            return
        began = time.monotonic()
        with suppress(LabError):
            self.ask(asking.Down(), patience=patience)
        self._gone(max(2.0, began + patience - time.monotonic()))

    def abandon(self, patience: float = PATIENCE) -> None:
        """Close the owner's connection: a lab that is not kept ends at once. Return when it has ended."""
        if self.owner is not None and not self.life.closed:
            self.owner.shutdown(socket.SHUT_RDWR)  # a forked process may have a copy
            self._gone(patience)

    def _gone(self, patience: float) -> None:
        """Wait for the end of PID 1 and all processes of the lab; after `patience` seconds, kill them."""
        ending.await_end(self.name, self.life, patience)
        cgroups.sweep(cgroups.find())  # also where what waits for that was killed
        if self.owner is not None:
            self.owner.close()


def own(name: str, owner: socket.socket, life: FileIO) -> RunningLab:
    """Return a lab that has just been launched."""
    return RunningLab(name, ending.process(life), life, owner)


def find(name: str) -> RunningLab:
    """Return a lab that is up."""
    with connect(name) as connection:
        return RunningLab(name, *reach.holder(name, connection))


def connect(name: str, patience: float | None = None) -> socket.socket:
    """Connect to a lab's holder, with `patience` seconds for each answer; raise LabError if there is no such lab."""
    connection = reach.call(name)
    connection.settimeout(patience)
    return connection


def answer(name: str, connection: socket.socket, question: Asked | None = None, say: Say | None = None) -> Any:
    """Return the holder's next answer, or raise its error; `say` gets its progress."""
    while True:
        try:
            came = answers.decode(receive(connection)[0])
        except EOFError as e:
            raise LabError(reach.ended(name)) from e
        match came:
            case Failed():
                answers.throw(came)
            case Done(data):
                return None if question is None else asking.value(question, data)
            case Progress(found) if say is not None:
                say(found)
