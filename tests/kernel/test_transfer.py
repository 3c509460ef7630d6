"""The two programs of a transfer, started from their command lines alone: what they say is what the kernel says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from testbed.linux import inet_diag, mptcp_info, netlink, uapi, wire
from tests.conftest import ROOT, Need

pytestmark = pytest.mark.kernel

PORT = 7001
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts an end in a network namespace of its own with the next ones, and ends it with the test."""
    started: list[subprocess.Popen[bytes]] = []
    # A process that only keeps the namespace; it says so when its loopback is up.
    keep = "ip link set lo up && sysctl -qw net.ipv4.conf.all.rp_filter=0 && echo up && exec sleep 300"
    user = () if os.geteuid() == 0 else ("--map-root-user", "--user")
    space = subprocess.Popen(("unshare", *user, "--net", "sh", "-c", keep), stdout=subprocess.PIPE)
    started.append(space)
    assert space.stdout is not None
    assert space.stdout.readline() == b"up\n"
    enter = ("nsenter", "--preserve-credentials", *(("--user",) if user else ()), "--net", "--target", str(space.pid))

    def run(*words: str, python: bool = True) -> subprocess.Popen[bytes]:
        argv = (sys.executable, "-m", "testbed.programs.transfer.main", f"port={PORT}") if python else ()
        done = subprocess.Popen((*enter, *argv, *words), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        started.append(done)
        return done

    run.space = space.pid  # type: ignore[attr-defined]
    yield run
    for process in started:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def listens(start: Start) -> None:
    """Wait until something listens on the port."""
    mark = f":{PORT:04X} 00000000:0000 0A"
    file = Path(f"/proc/{start.space}/net/tcp")  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while mark not in file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(tmp_path: Path, *processes: subprocess.Popen[bytes]) -> tuple[dict[str, Any], ...]:
    """Wait for processes and return what the files of both ends say in the end."""
    for process in processes:
        assert process.wait(timeout=120) == 0
    return tuple(
        json.loads((tmp_path / f"{end}.json").read_text()) for end in "cs" if (tmp_path / f"{end}.json").exists()
    )


def pair(start: Start, both: str, client: str = "sends=1", server: str = "receives=1") -> list[subprocess.Popen[bytes]]:
    """Start a server and, when it listens, its client."""
    first = start("out=s", *both.split(), *server.split())
    listens(start)
    return [start("out=c", "connect=127.0.0.1", *both.split(), *client.split()), first]


@pytest.mark.parametrize("mptcp", [0, 1])
@pytest.mark.parametrize("connections", [1, 200])
def test_every_byte_of_every_connection_arrives(
    tmp_path: Path, start: Start, need: Need, mptcp: int, connections: int
) -> None:
    need("mptcp")
    client, server = ended(tmp_path, *pair(start, f"bytes=20000003 connections={connections} mptcp={mptcp}"))
    assert (client["outcome"], server["outcome"]) == ("completed", "completed")
    assert len(client["connections"]) == len(server["connections"]) == connections
    assert sum(c["sent"] for c in client["connections"]) == sum(c["got"] for c in server["connections"]) == 20_000_003
    ports = {tuple(c["local"]) for c in client["connections"]}
    assert len(ports) == connections
    assert ports == {tuple(c["remote"]) for c in server["connections"]}
    for end in (client, server):
        assert [c["was_mptcp"] and c["fallen"] is None for c in end["connections"]] == [bool(mptcp)] * connections
    lines = [json.loads(row) for row in (tmp_path / "s.progress.jsonl").read_text().splitlines()]
    assert sum(row["got"] for row in lines) == 20_000_003


@pytest.mark.parametrize(
    ("both", "client", "server"),
    [
        ("seconds=1 mptcp=1", "receives=1", "sends=1"),
        ("seconds=1 sends=1 receives=1", "", ""),
        ("seconds=1 request=100 response=3000 every=0.01 mptcp=1", "", ""),
        ("seconds=1 request=100 response=3000 connections=3", "", ""),
        ("seconds=1 rate=1000000 mptcp=1 linger=5", "sends=1", "receives=1"),
        ("seconds=1 linger=0 mptcp=1", "sends=1", "receives=1"),
    ],
    ids=["reverse", "both-ways", "messages", "one-after-the-other", "rate", "fastclose"],
)
def test_each_way_of_sending_completes(
    tmp_path: Path, start: Start, need: Need, both: str, client: str, server: str
) -> None:
    need("mptcp")
    one, other = ended(tmp_path, *pair(start, both, client, server))
    assert (one["outcome"], other["outcome"]) == ("completed", "completed"), (one["error"], other["error"])
    sent, got = (sum(c[key] for c in one["connections"]) for key in ("sent", "got"))
    back, came = (sum(c[key] for c in other["connections"]) for key in ("sent", "got"))
    assert got == back
    assert came == sent or "linger=0" in both
    if "request" in both:
        answers = [
            a
            for row in (tmp_path / "c.progress.jsonl").read_text().splitlines()
            for a in json.loads(row).get("answers", ())
        ]
        assert len(answers) == sum(c["messages"] for c in one["connections"]) == sent // 100 == got // 3000
        assert "every" not in both or len(answers) in (100, 101)
    if "rate" in both:
        assert sent <= 1_300_000


def test_a_server_that_is_plain_tcp_makes_the_client_fall_back_and_both_say_so(
    tmp_path: Path, start: Start, need: Need
) -> None:
    need("mptcp")
    client, server = ended(tmp_path, *pair(start, "bytes=100000", "sends=1 mptcp=1"))
    assert [(e["outcome"], e["connections"][0]["was_mptcp"]) for e in (client, server)] == [("completed", False)] * 2


def test_a_kernel_without_mptcp_is_named_in_a_sentence(tmp_path: Path, start: Start, need: Need) -> None:
    need("mptcp")
    assert start("sysctl", "-qw", "net.mptcp.enabled=0", python=False).wait() == 0
    (client,) = ended(tmp_path, start("out=c", "connect=127.0.0.1", "sends=1", "mptcp=1"))
    assert client["outcome"] == "unsupported"
    assert client["error"].startswith("MPTCP is off in this node: net.mptcp.enabled is 0")


def test_a_client_without_a_server_is_refused(tmp_path: Path, start: Start) -> None:
    (client,) = ended(tmp_path, start("out=c", "connect=127.0.0.1", "sends=1", "connections=3"))
    assert (client["outcome"], client["error"]) == (
        "refused",
        "Connection refused (ECONNREFUSED), of 3 of 3 connections",
    )


def sending(tmp_path: Path) -> None:
    """Wait until data has come."""
    deadline = time.monotonic() + 60
    while not any(json.loads(row)["got"] for row in _lines(tmp_path / "s.progress.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stuck(tmp_path: Path) -> None:
    """Wait until the client can send nothing more."""
    deadline = time.monotonic() + 60
    while not (rows := _lines(tmp_path / "c.progress.jsonl")) or json.loads(rows[-1])["sent"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lines(file: Path) -> list[str]:
    return [row for row in file.read_text().splitlines(keepends=True) if row.endswith("\n")] if file.exists() else []


@pytest.mark.parametrize("mptcp", [0, 1])
def test_a_peer_that_is_killed_ends_a_transfer_and_a_new_one_can_be_served(
    tmp_path: Path, start: Start, need: Need, mptcp: int
) -> None:
    need("mptcp")
    client, server = pair(start, f"seconds=20 mptcp={mptcp} connections=2")
    sending(tmp_path)
    # With data that was not read its kernel resets; otherwise MPTCP may say so only after net.mptcp.close_timeout.
    server.send_signal(signal.SIGSTOP)
    stuck(tmp_path)
    server.send_signal(signal.SIGKILL)
    server.wait()
    again = start("out=s2", f"mptcp={mptcp}", "receives=1", "seconds=60", "connections=2")  # on the same port
    listens(start)
    (one,) = ended(tmp_path, client)
    assert one["outcome"] in ("reset", "incomplete")
    assert again.poll() is None
    again.terminate()
    assert again.wait(timeout=60) == 0
    assert json.loads((tmp_path / "s2.json").read_text())["outcome"] == "nobody"


def test_a_client_that_is_killed_ends_its_server(tmp_path: Path, start: Start) -> None:
    client, server = pair(start, "bytes=4000000000 seconds=60")
    sending(tmp_path)
    client.send_signal(signal.SIGKILL)
    client.wait()
    (other,) = ended(tmp_path, server)
    assert other["outcome"] in ("reset", "incomplete")


@pytest.mark.parametrize("mptcp", [0, 1])
def test_a_dead_path_ends_both_when_their_time_is_over(tmp_path: Path, start: Start, need: Need, mptcp: int) -> None:
    need("mptcp")
    processes = pair(start, f"seconds=6 patience=1 mptcp={mptcp}")
    sending(tmp_path)
    assert start("ip", "link", "set", "lo", "down", python=False).wait() == 0
    client, server = ended(tmp_path, *processes)
    assert (client["outcome"], server["outcome"]) == ("unfinished", "unfinished")
    assert client["error"].startswith("its peer did not say that it has all of ")


def test_full_info_is_what_inet_diag_says_and_what_older_calls_say(need: Need) -> None:
    need("mptcp", "mptcp-diag")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, uapi.IPPROTO_MPTCP) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, uapi.IPPROTO_MPTCP) as client,
        netlink.connect(wire.NETLINK_SOCK_DIAG) as diag,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        server = listener.accept()[0]
        with server:
            for size in (1, 70_000, 300_000):
                sent = client.send(bytes(size))
                while sent:
                    sent -= len(server.recv(sent))
                server.sendall(b"yes")
                assert client.recv(3) == b"yes"
            assert mptcp_info.is_mptcp(client)
            deadline = time.monotonic() + 30
            while True:  # an acknowledgement may still be on its way
                rows = inet_diag.subflows(diag)
                full, older = mptcp_info.connection(client), mptcp_info.connection(client, whole=False)
                assert full is not None
                assert older is not None
                same = [r for r in rows if r.token == full.token]
                told = [(s.local, s.local_port, s.remote, s.remote_port, s.tcp) for s in full.subflows]
                keys = tuple(full.subflows[0].tcp)
                seen = [(*r.ends, {key: getattr(r, key) for key in keys}) for r in same]
                seen = [(a, b, c, d, e) for a, b, c, d, e in seen]
                if (told == seen and full.bytes_acked == 370_001) or time.monotonic() > deadline:
                    break
            assert told == seen
            assert len(told) == 1
            assert [(s.local_port, s.tcp) for s in older.subflows] == [(s.local_port, s.tcp) for s in full.subflows]
            assert (full.bytes_sent, full.bytes_acked, full.bytes_received, full.bytes_retrans) == (
                370_001,
                370_001,
                9,
                0,
            )


def test_a_socket_of_tcp_is_no_mptcp(need: Need) -> None:
    need("mptcp")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert not mptcp_info.is_mptcp(client)
        assert mptcp_info.connection(client) is None
