"""Events of MPTCP in any order, whole and broken: a path manager commands only what is its own, within its limits.

`python -m tests.fuzz.paths 1000 7` tries 1000 sequences with the seed 7. Events are encoded as the kernel has them,
some of them broken, and decoded: a thousand for each thousand sequences of policies and rules.
"""

from __future__ import annotations

import random
import struct
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address

from testbed.drivers import joins
from testbed.drivers.mptcp_pm import EVENTS, AddSubflow, Command, Event, parse_event
from testbed.errors import LabError
from testbed.linux import uapi, wire
from testbed.programs.mptcp import admission
from testbed.programs.mptcp.policies import asked, heard, moved, resumed
from testbed.programs.mptcp.state import Do, Own, Policy, Rule, Settings, State, failed

KIND = "paths"
POLICIES: tuple[Policy, ...] = ("default", "fullmesh", "backup", "handover", "ndiffports", "rules")
OWN = (
    Own("10.0.2.1", "eth1", 1, ("subflow",)),
    Own("10.0.3.1", "eth2", 2, ("subflow", "backup")),
    Own("10.0.1.1", "eth0", 3, ("signal", "subflow")),
    Own("2001:db8::1", "eth1", 4, ("fullmesh",)),
)
WHERE = {"eth0": ("10.0.1.1/24",), "eth1": ("10.0.2.1/24", "2001:db8::1/64"), "eth2": ("10.0.3.1/24",)}
_HOSTS = ("10.0.1.1", "10.0.2.1", "10.0.3.1", "10.0.1.2", "10.0.2.2", "10.9.9.9", "2001:db8::1", "2001:db8::2")
_PACKED = tuple(ip_address(host).packed for host in _HOSTS)
_COMMANDS = ("send_addr", "remove_addr", "add_subflow", "remove_subflow", "set_backup", "allow_join")
_WORDS = tuple(word for word, _ in EVENTS.values())
_NUMBERS = tuple(EVENTS)
_BATCH = 1000  # events, and sequences of them
_FOREIGN = 99  # a token of another namespace: nothing here has it


def encoded(chance: random.Random) -> bytes:
    """Return an event as the kernel has it, with any of its attributes; some are broken."""
    v6 = chance.random() < 0.2
    local, remote = (chance.choice(_PACKED[6:] if v6 else _PACKED[:6]) for _ in range(2))
    first, other = (uapi.MPTCP_ATTR_SADDR6, uapi.MPTCP_ATTR_DADDR6) if v6 else (5, 7)
    parts = [
        wire.u32(uapi.MPTCP_ATTR_TOKEN, chance.randrange(3)),
        wire.attr(first, local),
        wire.attr(other, remote),
        wire.attr(uapi.MPTCP_ATTR_SPORT, struct.pack("!H", chance.randrange(3))),
        wire.attr(uapi.MPTCP_ATTR_DPORT, struct.pack("!H", chance.randrange(3))),
        wire.u8(uapi.MPTCP_ATTR_LOC_ID, chance.randrange(5)),
        wire.u8(uapi.MPTCP_ATTR_REM_ID, chance.randrange(5)),
        wire.u8(uapi.MPTCP_ATTR_BACKUP, chance.randrange(2)),
        wire.u8(uapi.MPTCP_ATTR_ERROR, chance.choice((0, 104, 111))),
        wire.u16(uapi.MPTCP_ATTR_FLAGS, chance.randrange(4)),
    ]
    if chance.random() < 0.3:
        del parts[chance.randrange(len(parts))]
    body = bytes((chance.choice(_NUMBERS), 1, 0, 0)) + b"".join(parts)
    if chance.random() < 0.1:
        at = chance.randrange(len(body))
        body = body[:at] + chance.randbytes(chance.randrange(5)) + body[at + chance.randrange(5) :]
    return body


def decoded(chance: random.Random, count: int = _BATCH) -> list[Event]:
    """Return events that the decoder made of what may come from a kernel; it may say that it can't read one."""
    found = []
    for _ in range(count):
        try:
            event = parse_event(encoded(chance))
            joins.parse_join(chance.randbytes(chance.randrange(90)))
        except LabError:
            continue
        found += [event] if event is not None else []
    return found


def settings(chance: random.Random) -> Settings:
    """Return how a path manager is to be."""
    do = (Do(chance.choice(_COMMANDS), chance.choice(("", "eth1")), bool(chance.randrange(2))) for _ in range(3))  # type: ignore[arg-type]
    rules = tuple(Rule(chance.choice((*_WORDS, "join_attempt")), d, side=chance.choice(("", "client"))) for d in do)
    how = chance.choice(POLICIES)
    return Settings(how, OWN, WHERE, chance.randrange(4), chance.randrange(4), 3, rules if how == "rules" else ())


def sequence(chance: random.Random, events: list[Event]) -> str:
    """Try one sequence; return what was wrong, "" when nothing was."""
    state, how = State(), settings(chance)
    begun: set[int] = set()
    for _ in range(chance.randrange(1, 12)):
        event: Event | None = None
        kind = chance.random()
        if kind < 0.85:
            event = chance.choice(events)
            if event.event in ("new_connection", "connection_established"):
                begun.add(event.token)
            commands = heard(state, how, event)
        elif kind < 0.92:
            commands = moved(state, how, chance.choice((*WHERE, "x")), bool(chance.randrange(2)))
        elif kind < 0.95:
            commands = resumed(state, how)
        elif kind < 0.98:
            commands = asked(state, how, Do(chance.choice(_COMMANDS), chance.choice(("", "eth1", "x"))))  # type: ignore[arg-type]
        else:
            join = Event("join_attempt", _FOREIGN, chance.choice(_HOSTS[:6]), 1, chance.choice(_HOSTS[:6]), 2)
            admission.allowed(state, how, join)
            commands = []
        for why in _wrong(state, how, begun, event, commands, limited=kind < 0.95):
            return why
        for command in commands:
            if chance.random() < 0.2:
                failed(state, command, early=bool(chance.randrange(2)))
    return ""


def _wrong(
    state: State, how: Settings, begun: set[int], event: Event | None, commands: list[Command], limited: bool
) -> Iterator[str]:
    for command in commands:
        command.body()
        if command.token not in begun or command.token not in state.connections:
            yield f"{command} is for a connection that is not of here"
        if event is not None and command.token != event.token:
            yield f"{command} answers an event of another connection: {event}"
        if isinstance(command, AddSubflow):
            if (":" in command.local) != (":" in command.remote):
                yield f"{command} has two families"
            known = state.connections.get(command.token)
            if limited and how.policy != "rules" and known is not None and known.extra() > how.subflows:
                yield f"{command} is beyond the limit of {how.subflows}"


def main(count: int, seed: int) -> int:
    """Try that many sequences, print what came of it, and return 1 when anything is wrong."""
    chance, began, bad = random.Random(seed), time.monotonic(), 0
    events: list[Event] = []
    for n in range(count):
        try:
            events = events if n % _BATCH else decoded(chance)
            why = sequence(chance, events)
        except Exception as e:  # noqa: BLE001 (whatever it is, it is what is looked for)
            why = f"{type(e).__name__}: {e}"
        if why:
            bad += 1
            print(f"sequence {n} of seed {seed}: {why}")
    rate = count / (time.monotonic() - began)
    print(f"{KIND}: seed {seed}: {count} sequences, {rate:.0f} a second; {bad} wrong")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
