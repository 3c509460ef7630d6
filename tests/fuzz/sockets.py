"""What is sent to a holder and to a keeper, by its user and by another: nothing of it may end the lab or the guest.

`python -m tests.fuzz.sockets 1000 7` sends 1000 messages to each with the seed 7. It needs root, to be another user.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

from testbed import __version__, load, up
from testbed.errors import LabError
from testbed.lab import control, reach, travel
from testbed.lab.messages import LONGEST
from testbed.machines.guest import microvm
from testbed.plan import run as schedule
from testbed.plan.lab import plan
from tests.conftest import ROOT
from tests.kernel.others import GUEST, as_other, connected, frame, without_qemu

FILE = ROOT / "topologies/two-hosts.yaml"
_ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 5, 1 << 31, 1 << 63, 1 << 70, 0.5, -1e-9, 1e300, [], {}, [[]], {"type": "Evil"}),
    *("", "a", "zz", "client", "eth0", "/", "a\0b", "\x1b[31m", "\u202e", "-", "x" * 300, "ZWNobw==", "=", "AA=="),
)
_HOLDER = ("exec", "enter", "leave", "change", "run", "look", "status", "plan", "rubbish", 5, None)
_KEEPER = ("status", "keep", "call", "ended", "signal", "rubbish", 5, None)
_EACH = 50  # messages to one lab, which a well-formed one among them may have changed


def verbs(steps: list[Any]) -> dict[str, dict[str, Any]]:
    """Return a request of each kind, as its fields."""
    word = {"name": "0" * 32}
    return {
        "exec": {"node": "client", "argv": ["dHJ1ZQ=="], "env": ["QT1i"], "places": ["Lw=="]},
        "enter": {"node": "client"},
        "change": {"perform": steps, "whole": steps, "about": {}, "hosts": ""},
        "run": {"steps": steps, "folder": "/nonexistent", "seconds": 0.0},
        "look": {"node": "client"},
        "call": word,
        "signal": {**word, "number": 15},
    }


def mutated(chance: random.Random, value: Any) -> Any:
    """Return a JSON value in which one place, or a few, is something odd."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], mutated(chance, value[at]), *value[at + 1 :]]
    return chance.choice(_ODD)


def made(chance: random.Random, kinds: tuple[Any, ...], known: dict[str, dict[str, Any]]) -> tuple[str, bytes, int]:
    """Return what kind of message this is, itself, and how many descriptors come with it."""
    fds = chance.choice((0, 0, 0, 1, 2, 3, 8, 9, 100))
    verb = chance.choice(kinds)
    whole = {"version": __version__, "verb": verb, **known.get(str(verb), {})}
    data = json.dumps(whole).encode()
    match chance.randrange(7):
        case 0:
            return "random bytes", chance.randbytes(chance.randrange(1, 60)), fds
        case 1:
            length = chance.choice((0, 1, 100, LONGEST, LONGEST + 1, 0xFFFFFFFF))
            return "lengths", length.to_bytes(4, sys.byteorder) + chance.randbytes(chance.randrange(50)), fds
        case 2:
            flipped = bytearray(data)
            flipped[chance.randrange(len(flipped))] = chance.randrange(256)
            return "a flipped byte", frame(bytes(flipped)), fds
        case 3:
            return "half a message", frame(data)[: chance.randrange(1, len(data) + 4)], fds
        case 4:
            deep = chance.choice((b"[", b'{"a":')) * chance.choice((10, 5000, 100_000))
            return "brackets", frame(data[:-1] + b', "more": ' + deep), fds
        case 5:
            return "other values", frame(json.dumps(chance.choice(_ODD)).encode()), fds
    for _ in range(chance.randrange(1, 4)):
        key = chance.choice(list(whole))
        whole[key] = mutated(chance, whole[key])
    if whole.get("verb") in ("down", "stop"):
        whole["verb"] = "rubbish"
    return "odd fields", frame(json.dumps(whole).encode()), chance.choice((fds, 2, 3))


def sent(address: str, data: bytes, fds: int) -> None:
    """Send it and hang up, sometimes before it was read."""
    with suppress(OSError), connected(address) as connection:
        null = [os.open(os.devnull, os.O_RDWR)] * fds
        try:
            socket.send_fds(connection, [data or b"\0"], null)
        finally:
            for fd in null[:1]:
                os.close(fd)
        connection.settimeout(0.02)
        connection.recv(1 << 16)


@contextmanager
def lab(name: str) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Yield a lab: its address, its holder, and a function that says that it lives."""
    with up(load(FILE), name) as found:
        yield reach.address(name), found.holder, lambda: control.find(name).status()


@contextmanager
def guest(name: str) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Yield a keeper: its address, its process, and a function that says that it lives."""
    with without_qemu(name) as found:
        yield reach.address(name, GUEST), found.holder, lambda: microvm.alive(found)


def campaign(count: int, chance: random.Random, place: Callable[[str], Any], kinds: tuple[Any, ...]) -> Counter[str]:
    """Send so many messages to labs, or to keepers, of ours; return how many of each kind ended one."""
    steps = plan(load(FILE))
    run = json.loads(bytes(travel.encode((*steps.steps, *schedule.run_steps(steps)))))
    known, wrong = verbs(run), Counter[str]()
    for begin in range(0, count, _EACH):
        what = ""
        try:
            with place(f"f{uuid4().hex[:10]}") as (address, holder, alive):
                alive()
                before = len(os.listdir(f"/proc/{holder}/fd"))
                for _ in range(min(_EACH, count - begin)):
                    what, data, fds = made(chance, kinds, known)
                    if chance.random() < 0.05:
                        as_other(lambda: sent(address, data, fds))  # noqa: B023 (it is called here)
                    else:
                        sent(address, data, fds)
                    alive()
                deadline = time.monotonic() + 10
                while len(os.listdir(f"/proc/{holder}/fd")) > before + 8:  # namespaces that were first used
                    assert time.monotonic() < deadline, "descriptors are left open"
        except (LabError, OSError, AssertionError) as e:
            wrong[what] += 1
            print(f"sockets: after {what}: {str(e).strip().splitlines()[-1:]}")
    return wrong


def main(count: int, seed: int) -> int:
    """Send so many messages to holders and as many to keepers; print the rate, and return 1 when one ended."""
    chance, began = random.Random(seed), time.monotonic()
    wrong = campaign(count, chance, lab, _HOLDER) + campaign(count, chance, guest, _KEEPER)
    spent = time.monotonic() - began
    print(f"sockets: seed {seed}: {2 * count} messages, {2 * count / spent:.0f} a second; ended by {dict(wrong)}")
    return int(wrong.total() > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
