"""The log of a path manager, and those who follow it: a line for each event and each command."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct, field

from testbed.drivers import mptcp_pm
from testbed.drivers.mptcp_pm import Command, Event


class Log(Struct):
    """The file, and the pipes of followers."""

    file: BinaryIO
    followers: list[int] = field(default_factory=list)

    def write(self, row: dict[str, Any]) -> None:
        """Write a row with the time (CLOCK_MONOTONIC); a follower that is gone, or reads too slowly, gets no more."""
        line = msgspec.json.encode({"t": time.monotonic(), **row}) + b"\n"
        self.file.write(line)
        for fd in list(self.followers):
            try:
                os.write(fd, line)  # a pipe takes lines up to PIPE_BUF whole or not at all (pipe(7))
            except OSError:
                self.followers.remove(fd)
                os.close(fd)

    def follow(self, fd: int) -> None:
        """Write every further row to a pipe as well."""
        os.set_blocking(fd, False)
        self.followers.append(fd)


def heard(event: Event) -> dict[str, Any]:
    """Return the row of an event: the word of the RFC, and the kernel's own name."""
    return {**msgspec.to_builtins(event), "kernel": mptcp_pm.KERNEL[event.event]}


def sent(command: Command, error: str = "") -> dict[str, Any]:
    """Return the row of a command, with the kernel's refusal where it refused it."""
    word, kernel = mptcp_pm.COMMANDS[type(command)]
    return {"command": word, **msgspec.to_builtins(command), "kernel": kernel, **({"error": error} if error else {})}


def arrived(event: Event, packet: int) -> dict[str, Any]:
    """Return the row of a join on its way in, a packet of the queue or one that was logged (-1)."""
    return {**msgspec.to_builtins(event), "kernel": "NFQNL_MSG_PACKET" if packet >= 0 else "NFULNL_MSG_PACKET"}


def decided(event: Event, allow: bool) -> dict[str, Any]:
    """Return the row of the verdict on a join."""
    about = {"token": event.token, "remote": event.remote, "remote_port": event.remote_port, "address": event.local}
    return {"command": "allow_join", "allow": allow, **about, "kernel": "NFQNL_MSG_VERDICT"}


def default(allow: bool, error: str) -> dict[str, Any]:
    """Return the row of a changed default for joins."""
    row = {"command": "allow_join", "allow": allow, "kernel": "NFT_MSG_NEWRULE"}
    return {**row, "error": error} if error else row


def give(fd: int, data: bytes) -> None:
    """Write all of an answer to somebody's file, and close it."""
    with suppress(OSError), open(fd, "wb") as file:  # a file that can't be written to is its owner's affair
        file.write(data)
