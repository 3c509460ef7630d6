"""Frames on a channel, counted from the ring of a packet socket: sent through a veth pair, radiotap header and all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT, Need

pytestmark = pytest.mark.kernel

A, B, GROUP = "02:00:00:00:00:0a", "02:00:00:00:00:0b", "01:00:5e:01:01:01"
# In a namespace of its own: a pair, the ring on one end, and what is to be sent by the other.
PROGRAM = """
import json, socket, subprocess, sys
from testbed.programs.sampler import air

for words in ("link add ear type veth peer name mouth", "link set ear up", "link set mouth up"):
    subprocess.run(("ip", *words.split()), check=True)
rounds = json.loads(sys.argv[1])
ear = air.hear("ear", 5180)
mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
mouth.bind(("mouth", 0))
for frames in rounds:
    for data, times in frames:
        for _ in range(times):
            mouth.send(bytes.fromhex(data))
    ear.drain()
print(json.dumps({"rows": ear.rows(), "drops": ear.drops}))
"""


def frame(control: int, receiver: str, sender: str, size: int, radiotap: int = 8) -> str:
    """Return a frame with a radiotap header of that length; `size` is that of the 802.11 frame."""
    header = bytes((0, 0)) + radiotap.to_bytes(2, "little") + bytes(radiotap - 4)
    addresses = bytes.fromhex(f"{receiver}{sender}{A}".replace(":", ""))
    return (header + bytes((control, 1, 0, 0)) + addresses + bytes(size - 22)).hex()


def counted(*rounds: list[tuple[str, int]]) -> Any:
    own = () if os.geteuid() == 0 else ("--map-root-user",)
    words = ("unshare", "--net", *own, sys.executable, "-c", PROGRAM, json.dumps(rounds))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(words, capture_output=True, text=True, env=env, check=True, timeout=60)
    return json.loads(done.stdout)


DATA, QOS_DATA, NULL, QOS_NULL, BEACON, ACK = 0x08, 0x88, 0x48, 0xC8, 0x80, 0xD4


def test_data_frames_are_counted_by_who_sends_them_to_whom(need: Need) -> None:
    need("veth")
    found = counted(
        [
            (frame(QOS_DATA, B, A, 100), 5),
            (frame(DATA, GROUP, A, 60, radiotap=36), 3),
            *((frame(kind, B, A, 40), 7) for kind in (NULL, QOS_NULL, BEACON, ACK)),
        ],
        [(frame(DATA, A, B, 1500), 2), (frame(QOS_DATA, B, A, 200), 1)],
    )
    assert sorted(map(tuple, found["rows"])) == sorted(
        [(5180, A, B, 6, 700), (5180, A, GROUP, 3, 180), (5180, B, A, 2, 3000)]
    )
    assert found["drops"] == 0


def test_what_does_not_fit_into_the_ring_is_told(need: Need) -> None:
    need("veth")
    found = counted([(frame(QOS_DATA, B, A, 100), 9000)], [(frame(QOS_DATA, B, A, 100), 10)])
    ((_, _, _, frames, size),) = found["rows"]
    assert frames + found["drops"] == 9010
    assert 8000 <= frames <= 8300
    assert size == 100 * frames
