"""MPTCP connections that stay open as long as a test wants them to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from testbed.lab.control import RunningLab

_SERVER = """
import os, select, socket, sys
listener = socket.socket(proto=262)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", 5201)); listener.listen(1024)
poll = select.poll(); poll.register(listener, select.POLLIN); poll.register(0, select.POLLIN | select.POLLHUP)
flows = {}
print("ready", flush=True)
while True:
    for fd, _ in poll.poll():
        if fd == 0:
            sys.exit()
        if fd == listener.fileno():
            flow = listener.accept()[0]; flows[flow.fileno()] = flow; poll.register(flow, select.POLLIN)
            continue
        data = flows[fd].recv(65536)
        if data:
            flows[fd].sendall(data)
        else:
            poll.unregister(fd); flows.pop(fd).close()
"""
_CLIENT = """
import socket, sys
flows = []
for n in range(int(sys.argv[2])):
    flow = socket.socket(proto=262); flow.connect((sys.argv[1], 5201)); flows.append(flow)
def exchange():
    for n, flow in enumerate(flows):
        said = b"%08d" % n; flow.sendall(said); got = b""
        while len(got) < 8:
            part = flow.recv(8 - len(got)); assert part, "it was closed"; got += part
        assert got == said
exchange()
print("ready", flush=True)
for line in sys.stdin:
    exchange()
    print("ready", flush=True)
"""


class Peers:
    """Both programs; `exchange` sends a message over each connection and waits for its answer."""

    def __init__(self, client: subprocess.Popen[str]) -> None:
        self.client = client

    def exchange(self) -> None:
        assert self.client.stdin is not None
        self.client.stdin.write("\n")
        self.client.stdin.flush()
        ready(self.client)


def ready(process: subprocess.Popen[str]) -> None:
    """Wait until a program says that it has come so far."""
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.wait()


@contextmanager
def connected(lab: RunningLab, count: int = 1, to: str = "10.0.1.2") -> Iterator[Peers]:
    """Have connections from the node `client` to the node `server` of a lab."""
    enter = (sys.executable, "-m", "testbed", "exec", lab.name)
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    python = ("--", sys.executable, "-c")
    with subprocess.Popen((*enter, "server", *python, _SERVER), **how) as server:  # type: ignore[call-overload]
        try:
            ready(server)
            words = (*enter, "client", *python, _CLIENT, to, str(count))
            with subprocess.Popen(words, **how) as client:  # type: ignore[call-overload]
                ready(client)
                try:
                    yield Peers(client)
                finally:
                    client.stdin.close()
        finally:
            server.stdin.close()
