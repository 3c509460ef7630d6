"""A node's path manager: it hears the events of MPTCP and of interfaces, and sends commands, until SIGTERM.

It writes NODE/mptcp-events.jsonl: a line for each event and each command, with `t` on CLOCK_MONOTONIC, the word of the
path-management RFC, and the kernel's own name. A command that the kernel refused has its `error`.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from testbed.drivers import mptcp, mptcp_pm
from testbed.linux import netlink, uapi, wire
from testbed.programs.mptcp import admission, asking, door, events, log, recovery
from testbed.programs.mptcp.door import Door
from testbed.programs.mptcp.log import Log
from testbed.programs.mptcp.policies import asked, heard, moved, resumed
from testbed.programs.mptcp.state import Do, Settings, State, failed

_LINKS = 1  # include/uapi/linux/rtnetlink.h: RTNLGRP_LINK


class Manager(Struct):
    """The sockets, the log, and what is known."""

    settings: Settings
    state: State
    events: socket.socket
    commands: socket.socket
    route: socket.socket
    diag: socket.socket
    asked: socket.socket
    family: int
    log: Log
    door: Door
    links: dict[int, tuple[str, bool]]


def main(words: Sequence[str]) -> None:
    """Manage the paths of the network namespace that this process is in.

    The arguments are files: the settings, the log, and what the kernel lacks (written if there is something).
    """
    settings = msgspec.json.decode(Path(words[0]).read_bytes(), type=Settings)
    ended, end = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(end)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # of followers that went away
    with open(words[1], "ab", buffering=0) as file:
        manager = _opened(settings, Log(file))
        if manager.door.lacks:
            Path(words[2]).write_text(manager.door.lacks + "\n")
        _recovered(manager, "started")
        poll = select.poll()
        for source in (ended, manager.events, manager.route, manager.asked, manager.door.sock):
            if source is not None:
                poll.register(source, select.POLLIN)
        while ended not in (ready := [fd for fd, _ in poll.poll()]):
            if manager.route.fileno() in ready:
                _interfaces(manager)
            _joins(manager)
            if manager.events.fileno() in ready:
                _connections(manager)
            if manager.asked.fileno() in ready:
                asking.answer(manager.asked, manager.state, manager.log, lambda do: _done(manager, do))


def _opened(settings: Settings, to: Log) -> Manager:
    commands = netlink.connect(wire.NETLINK_GENERIC)
    family = events.family(commands)
    heard = events.listen(commands, settings.room)
    route = netlink.listen(wire.NETLINK_ROUTE, (_LINKS,), settings.room)
    diag = netlink.connect(wire.NETLINK_SOCK_DIAG)
    state = State()
    at = door.opened(state, settings)
    return Manager(settings, state, heard, commands, route, diag, asking.listen(), family, to, at, {})


def _recovered(manager: Manager, why: str) -> None:
    """Take what exists from the kernel's tables: at the start, and when events were lost."""
    recovery.recover(manager.state, manager.diag)
    with netlink.connect(wire.NETLINK_ROUTE) as sock:
        for entry in netlink.link_entries(sock):
            _interface(manager, entry)
    found = [{"token": c.token, "server": c.server} for c in manager.state.connections.values()]
    how = {"policy": manager.settings.policy, "joins": manager.door.how}
    manager.log.write({"manager": why, **how, "connections": found})
    _send(manager, resumed(manager.state, manager.settings))


def _joins(manager: Manager) -> None:
    """Write each join down before the kernel answers it, and decide those that wait for that."""
    for found in door.heard(manager.door):
        if found is None:
            manager.log.write({"manager": "lost joins"})
            continue
        packet, event = found
        manager.log.write(log.arrived(event, packet))
        if packet >= 0:
            allow = admission.allowed(manager.state, manager.settings, event)
            door.answer(manager.door, packet, allow)
            manager.log.write(log.decided(event, allow))


def _connections(manager: Manager) -> None:
    """React to the events that have arrived."""
    for event in events.heard(manager.events, manager.family):
        if event is None:
            _recovered(manager, "lost events")
            continue
        _joins(manager)  # what was on its way in before this, comes before this
        manager.log.write(log.heard(event))
        _send(manager, heard(manager.state, manager.settings, event))


def _done(manager: Manager, do: Do) -> str:
    """Do what an event of the run asks for; return "OK", or why not."""
    if do.command == "allow_join":
        manager.state.joins = "allow" if do.allow else "deny"
        error = door.changed(manager.door, manager.state, manager.settings)
        manager.log.write(log.default(do.allow, error))
        return error or "OK"
    if not (commands := asked(manager.state, manager.settings, do)):
        return "nothing to do: no connection here has what this is about"
    return _send(manager, commands) or "OK"


def _interfaces(manager: Manager) -> None:
    """React to interfaces that went down or came up."""
    for data in netlink.heard(manager.route):
        if data is None:
            _recovered(manager, "lost events")
            continue
        for kind, _, _, entry in wire.messages(data):
            if kind == uapi.RTM_NEWLINK:
                _interface(manager, entry)


def _interface(manager: Manager, entry: bytes) -> None:
    name, index = netlink.parse_link(entry)
    up = bool(uapi.IFINFOMSG.unpack_from(entry)[3] & uapi.IFF_RUNNING)
    if name == "lo" or manager.links.get(index) == (name, up):
        return
    before = manager.links.get(index)
    manager.links[index] = (name, up)
    if before is not None or not up:
        manager.log.write({"interface": name, "up": up, "kernel": "RTM_NEWLINK"})
        _send(manager, moved(manager.state, manager.settings, name, up))


def _send(manager: Manager, commands: Sequence[mptcp_pm.Command]) -> str:
    """Send commands, one at a time, since each may be refused for a reason of its own; return the last reason."""
    why = ""
    for command in commands:
        message = wire.Message(0, 0, command.body(), mptcp.FAMILY)
        refused = netlink.transact(manager.commands, [message], manager.family)
        error = str(refused[0]) if refused else ""
        if refused:
            failed(manager.state, command, early=refused[0].errno == errno.ENOTCONN)
            # A subflow that is gone is what `remove_subflow` is for: the peer may have closed it first.
            gone = isinstance(command, mptcp_pm.RemoveSubflow) and refused[0].errno == errno.ESRCH
            why = why if gone else error
        manager.log.write(log.sent(command, error))
    return why
