"""`RunningLab`: what a program does with a lab that is up."""

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
from testbed.lab import answers, asking, ending, reach
from testbed.lab.answers import Done, Failed, Progress
from testbed.lab.asking import Asked
from testbed.lab.ending import PATIENCE
from testbed.lab.messages import receive, send
from testbed.lab.reach import ANSWERS, SilentError
from testbed.linux import cgroups, unix
from testbed.metrics.records import Held

Say = Callable[[dict[str, Any]], None]


class RunningLab(Struct):
    """A lab that is up; as a context manager it takes the lab down at the end.

    Every request has a connection of its own: threads may share this object, and a request that is interrupted
    (Ctrl-C in `exec`) ends alone. `owner` is the connection that a lab lives with until it is kept.
    """

    name: str
    holder: int  # the process id of the lab's PID 1, as seen from here
    life: FileIO  # its pidfd
    owner: socket.socket | None = None

    def __enter__(self) -> RunningLab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def await_up(self, say: Say | None = None) -> None:
        """Return when a lab that was just launched is up; raise what its holder says when it can't be."""
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
        """Ask the holder and return its answer; `say` gets its progress, a TestbedError of its is raised here.

        SilentError when nothing comes for `patience` seconds.
        """
        message = asking.encode(question)
        with connect(self.name, patience) as connection:
            if unix.peer(connection).pid != self.holder:
                raise LabError(reach.ended(self.name))  # and another lab has its name now
            try:
                send(connection, message, fds)
            except (BrokenPipeError, ConnectionResetError) as e:
                raise LabError(reach.ended(self.name)) from e
            try:
                return answer(self.name, connection, question, say)
            except TimeoutError as e:
                raise SilentError(reach.silent(self.name, self.holder)) from e

    def status(self) -> dict[str, Any]:
        """Return what the holder knows of its lab: state, nodes, processes."""
        found: dict[str, Any] = self.ask(asking.Status(), patience=ANSWERS)
        return found

    def bounds(self) -> dict[str, Held]:
        """Return the bounds of the lab (`resources`), by what each is held, and what it has done until now."""
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
        """Run a command in a node to its end; both outputs are captured as text. "" is the sandbox itself.

        It runs in `cwd`, else in this process's own folder where the lab has it, else in /.
        """
        places = ["/"] if cwd is None else [cwd]
        if cwd is None:
            with suppress(FileNotFoundError):  # a folder that was removed
                places.insert(0, os.getcwd())
        question = asking.command(node, argv, os.environ if env is None else env, places)
        # Files in memory: making temporary ones, each with its buffers, takes as long as starting a program.
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
        """Let the lab outlive this process."""
        self.ask(asking.Keep())
        if self.owner is not None:
            self.owner.close()
            self.owner = None

    def down(self, patience: float = PATIENCE) -> None:
        """End every process newest first, then the holder, by SIGKILL when that takes longer than `patience` s.

        Return when all of the lab is gone.
        """
        if self.life.closed:
            return
        began = time.monotonic()
        with suppress(LabError):
            self.ask(asking.Down(), patience=patience)
        self._gone(max(2.0, began + patience - time.monotonic()))

    def abandon(self, patience: float = PATIENCE) -> None:
        """Let go of a lab that is not kept: it ends at once. Return when it is gone."""
        if self.owner is not None and not self.life.closed:
            self.owner.shutdown(socket.SHUT_RDWR)  # a copy may live in a process that somebody forked
            self._gone(patience)

    def _gone(self, patience: float) -> None:
        """Wait until PID 1, and with it every process of the lab, has ended; SIGKILL it after `patience` seconds."""
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
    """Connect to a lab's holder, which then has `patience` seconds for each answer; LabError when there is none."""
    connection = reach.call(name)
    connection.settimeout(patience)
    return connection


def answer(name: str, connection: socket.socket, question: Asked | None = None, say: Say | None = None) -> Any:
    """Return the holder's next answer; `say` gets its progress, a TestbedError of its is raised here."""
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
