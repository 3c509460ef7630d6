"""What a path manager does: events in, commands out, without any input or output of its own."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.drivers.mptcp_pm import AddSubflow, Command, Event, RemoveAddr, RemoveSubflow, SendAddr, SetBackup
from testbed.programs.mptcp.state import Connection, Do, Own, Rule, Settings, State, Subflow, note

_JOINS = {"subflow", "fullmesh"}


def heard(state: State, settings: Settings, event: Event) -> list[Command]:
    """Return the commands that answer an event, and take both into the state."""
    known = note(state, event)
    if known is None:
        return []
    if settings.policy == "rules":
        return _kept(known, [c for r in settings.rules for c in _ruled(state, settings, known, r, event)])
    match event.event:
        case "connection_established":
            return _kept(known, [*_announced(settings, known), *_opened(state, settings, known)])
        case "new_addr" if known.established and event.remote_id in known.remotes:
            return _kept(known, list(_joined(state, settings, known, event)))
        case "subflow_closed" if known.established and event.ends() == known.first.ends():
            return _kept(known, list(_promoted(state, settings, known)))
        case "subflow_closed" if known.established and event.error:
            return _kept(known, list(_opened(state, settings, known)))
    return []


def moved(state: State, settings: Settings, interface: str, up: bool) -> list[Command]:
    """Return the commands that answer an interface that went down, or came up: no event of MPTCP tells of that."""
    before = interface in state.down
    (state.down.discard if up else state.down.add)(interface)
    if settings.policy != "handover" or before != up:
        return []
    found: list[Command] = []
    for known in state.connections.values():
        if known.established:
            dead = [s for s in known.subflows.values() if not up and settings.interface(s.local) == interface]
            for subflow in dead:
                known.subflows.pop(subflow.ends())
                known.tried.discard(subflow.local)
            answer = [*(_promoted(state, settings, known) if dead else ())]
            answer += [RemoveSubflow(known.token, *s.ends()) for s in dead]
            found += _kept(known, [*answer, *(_opened(state, settings, known) if up else ())])
    return found


def resumed(state: State, settings: Settings) -> list[Command]:
    """Return what connections lack after a late start, or after events were lost: subflows and announcements."""
    found: list[Command] = []
    for known in state.connections.values():
        if known.established and settings.policy != "rules":
            found += _kept(known, [*_announced(settings, known), *_opened(state, settings, known)])
    return found


def _kept(known: Connection, commands: list[Command]) -> list[Command]:
    """Return the commands after they were taken into the connection."""
    for command in commands:
        if isinstance(command, AddSubflow):
            known.opening.append(command)
            known.tried.add(command.local)
            if command.remote_id:
                known.used.add(command.remote_id)
        elif isinstance(command, SendAddr):
            known.announced.add(command.id)
        elif isinstance(command, RemoveAddr):
            known.announced.discard(command.id)
        elif isinstance(command, SetBackup):
            ends = (command.local, command.local_port, command.remote, command.remote_port)
            if (s := known.subflows.get(ends)) is not None:
                known.subflows[ends] = Subflow(*ends, s.local_id, s.remote_id, command.backup)
    return commands


def _announced(settings: Settings, known: Connection) -> Iterator[Command]:
    """Announce each address that is to be signalled but that of the first subflow, which the peer knows."""
    for own in settings.own:
        if "signal" in own.flags and own.address != known.first.local and own.id not in known.announced:
            yield SendAddr(known.token, own.address, own.id, own.port)


def _opened(state: State, settings: Settings, known: Connection) -> Iterator[Command]:
    """Open subflows from this host's addresses; the side that listens opens none."""
    if known.server:
        return
    room = settings.subflows - known.extra()
    if settings.policy == "ndiffports":
        more = min(room, settings.ports - 1 - known.extra())
        yield from (_subflow(settings, known, known.first.local, 0) for _ in range(max(0, more)))
        return
    for own in _usable(state, settings):
        meshed = settings.policy == "fullmesh" or "fullmesh" in own.flags
        if not meshed and (own.address == known.first.local or own.address in known.tried):
            continue
        for number in (0, *(known.remotes if meshed else ())):
            if room > 0 and _wanted(known, own.address, number):
                room -= 1
                yield _subflow(settings, known, own.address, number, "backup" in own.flags)


def _usable(state: State, settings: Settings) -> Iterator[Own]:
    """Yield the addresses that open subflows, without those of interfaces that are down."""
    for own in settings.own:
        if _JOINS & set(own.flags) and own.interface not in state.down:
            yield own


def _wanted(known: Connection, local: str, number: int) -> bool:
    """Say whether a subflow from a local address to the peer's address of this ID is possible, and not there yet."""
    if number == 0 and known.withheld:
        return False
    remote, port = _target(known, number)
    taken = {(s.local, s.remote, s.remote_port) for s in known.subflows.values()}
    taken |= {(c.local, c.remote, c.remote_port) for c in known.opening}
    return (":" in local) == (":" in remote) and (local, remote, port) not in taken


def _target(known: Connection, number: int) -> tuple[str, int]:
    return known.remotes[number] if number else (known.first.remote, known.first.remote_port)


def _subflow(settings: Settings, known: Connection, local: str, number: int, backup: bool = False) -> AddSubflow:
    remote, port = _target(known, number)
    backup = backup or settings.policy in ("backup", "handover")
    # The address of the first subflow has ID 0 in its connection (RFC 8684, 3.2).
    own = known.first.local_id if local == known.first.local else settings.id_of(local)
    return AddSubflow(known.token, local, own, remote, port, number, backup)


def _joined(state: State, settings: Settings, known: Connection, event: Event) -> Iterator[Command]:
    """Use an address that the peer announced: from each address of a full mesh, or from the one that is near to it."""
    number = event.remote_id or 0
    if number in known.used or len(known.used) >= settings.accepted:
        return
    mesh = [o for o in _usable(state, settings) if settings.policy == "fullmesh" or "fullmesh" in o.flags]
    locals_ = [known.first.local] if settings.policy == "fullmesh" else []
    locals_ += [o.address for o in mesh if o.address not in locals_]
    near = settings.near(known.remotes[number][0])
    room = settings.subflows - known.extra()
    for local in locals_ or [near or known.first.local]:
        if room > 0 and _wanted(known, local, number) and settings.interface(local) not in state.down:
            room -= 1
            yield _subflow(settings, known, local, number)


def _promoted(state: State, settings: Settings, known: Connection) -> Iterator[Command]:
    """Let a backup subflow carry data when no other one is left on an interface that is up."""
    live = [s for s in known.subflows.values() if settings.interface(s.local) not in state.down]
    if settings.policy == "handover" and live and all(s.backup for s in live):
        yield SetBackup(known.token, *live[0].ends(), backup=False)


def _ruled(state: State, settings: Settings, known: Connection, rule: Rule, event: Event) -> Iterator[Command]:
    """Yield what a rule does about an event."""
    if rule.on != event.event or rule.side not in ("", "server" if known.server else "client"):
        return
    near = settings.interface(event.local) if event.local else settings.interface(settings.near(event.remote or "::"))
    if rule.interface in ("", near):
        yield from _done(state, settings, known, rule.do, event.remote_id or 0 if event.event == "new_addr" else 0)


def asked(state: State, settings: Settings, do: Do) -> list[Command]:
    """Return the commands for which a user asked, for every connection that is established."""
    known = [c for c in state.connections.values() if c.established]
    return [command for c in known for command in _kept(c, list(_done(state, settings, c, do, 0)))]


def _done(state: State, settings: Settings, known: Connection, do: Do, number: int) -> Iterator[Command]:
    """Yield a command for a connection; `number` is the ID of the peer's address unless the command states one."""
    number = number if do.remote_id is None else do.remote_id
    addresses = [a.partition("/")[0] for a in settings.interfaces.get(do.interface, ())]
    of = [s for s in known.subflows.values() if not do.interface or s.local in addresses]
    match do.command:
        case "send_addr":
            yield from (SendAddr(known.token, a, settings.id_of(a), do.port) for a in addresses)
        case "remove_addr":
            yield from (RemoveAddr(known.token, settings.id_of(a)) for a in addresses)
        case "add_subflow" if number == 0 or number in known.remotes:
            if not do.interface:
                addresses = [settings.near(_target(known, number)[0]) or known.first.local]
            for local in addresses:
                if _wanted(known, local, number) and settings.interface(local) not in state.down:
                    yield _subflow(settings, known, local, number, do.backup)
        case "remove_subflow":
            yield from (RemoveSubflow(known.token, *s.ends()) for s in of)
        case "set_backup":
            yield from (SetBackup(known.token, *s.ends(), backup=do.backup) for s in of)
