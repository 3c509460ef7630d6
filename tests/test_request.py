"""What another machine sends on standard input is decoded by its types, and bounded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import asdict

from testbed.errors import InputError
from testbed.lab.messages import LONGEST
from testbed.machines.ssh import request
from testbed.machines.ssh.request import Request

GOOD = Request(("check", "lab.yaml"), "0" * 16, {"lab.yaml": "name: x\n"}, {"A": "\udcff"})


def read(sent: bytes, tmp_path: Path) -> Request:
    (tmp_path / "sent").write_bytes(sent)
    fd = os.open(tmp_path / "sent", os.O_RDONLY)
    try:
        return request._read(fd)
    finally:
        os.close(fd)


def framed(**fields: object) -> bytes:
    body = json.dumps({**asdict(GOOD), **fields}).encode()
    return b"%d\n" % len(body) + body


def test_a_request_arrives_as_it_was_sent(tmp_path: Path) -> None:
    assert read(request.encode(GOOD), tmp_path) == GOOD


ODD = {
    "nothing": b"",
    "no length": b"x" * 1000,
    "no number": b"five\n",
    "a length without end": b"1" * 1_000_000,
    "a negative length": b"-5\nhello",
    "too long": b"%d\n" % (LONGEST + 1),
    "half of it": request.encode(GOOD)[:-1],
    "no json": b"5\nhello",
    "a list": b"2\n[]",
    "brackets without end": b"100000\n" + b"[" * 100_000,
    "a text for words": framed(argv="check"),
    "numbers for words": framed(argv=[5]),
    "a number for a file": framed(files={"lab.yaml": 5}),
    "a list for the environment": framed(env=["A=b"]),
    "no token": framed(token=None),
}


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD)
def test_what_is_no_request_is_said_in_a_sentence(sent: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"standard input (is not a request of testbed|ended before)"):
        read(sent, tmp_path)
