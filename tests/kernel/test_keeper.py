"""A keeper believes nobody: not another user, not its own user's broken program, not its guest."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from testbed.lab import reach
from testbed.lab.messages import LONGEST
from testbed.machines.guest import microvm
from tests.kernel.others import GUEST, as_other, connected, eventually, evil, frame, refused, without_qemu

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="plays another user"),
]


def test_another_user_can_not_say_a_word_to_a_keeper(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    marker = tmp_path / "marker"
    stop = frame(json.dumps({"verb": "stop"}).encode())
    with without_qemu(name) as guest:
        address = reach.address(name, GUEST)
        assert as_other(lambda: refused(address, [evil(marker), stop, b"", stop[:3], b"\xff" * 100])) == 0
        assert not marker.exists(), "what it sent was run"
        assert microvm.alive(guest).name == name


def test_what_a_keeper_does_not_understand_costs_its_connection_and_not_the_guest(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    status = json.dumps({"verb": "status"}).encode()
    nonsense = [
        evil(marker),
        frame(b"no json"),
        frame(b'{"verb": "rubbish"}'),
        frame(b'{"verb": "call"}'),
        frame(b'{"verb": "call", "name": "../../etc"}'),
        frame(b'{"verb": "signal", "name": "%s", "number": 1000}' % (b"a" * 32)),
        frame(b'{"verb": "status", "more": ' + b"[" * 60_000),
        frame(b"[]"),
        frame(b"\xff" * 1000),
        (LONGEST + 1).to_bytes(4, "little") + b"x" * 1000,
    ]
    with without_qemu(name) as guest:
        address = reach.address(name, GUEST)
        halves = [connected(address) for _ in range(300)]
        for half in halves:
            half.sendall(frame(status)[:-1])
        for said in nonsense:
            with connected(address) as connection:
                connection.sendall(said)
                told = b""
                with suppress(ConnectionResetError):  # some of it was not read
                    while part := connection.recv(1 << 16):  # up to the end: it hangs up
                        told += part
                assert json.loads(told[4:])["kind"] == "error", said[:40]
        assert not marker.exists()
        assert microvm.alive(guest).name == name, "while 300 are held open with half a message"
        for half in halves:
            half.close()
        folder = Path(f"/proc/{guest.holder}/fd")
        eventually(lambda: len(list(folder.iterdir())) < 30)


def test_a_guest_may_say_what_it_likes(name: str) -> None:
    hostile = [
        b"\nnot json\n",
        b"x" * 5_000_000,
        b"\n[1, 2]\n5\nnull\n\xff\xfe\n",
        b'{"done": 5}\n{"event": ["hello"]}\n{"id": {}}\n{"error": "x", "id": "getfd"}\n',
        b'{"done": "ping", "more": ' + b"[" * 50_000 + b"\n",
        b'{"event": "warm"}\n' * 20_000,
        b'{"done": "' + b"y" * 200_000 + b'"}\n',
    ]
    with without_qemu(name, hostile) as guest:
        assert microvm.alive(guest).name == name
        microvm.keep(guest)
        rss = Path(f"/proc/{guest.holder}/statm").read_text().split()
        assert int(rss[1]) * os.sysconf("SC_PAGESIZE") < 200_000_000
    assert name not in microvm.guests()
