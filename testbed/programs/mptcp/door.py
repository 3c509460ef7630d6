"""Where joins come in: a queue that asks the path manager about each, or rules of the kernel's, and a log."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from msgspec import Struct

from testbed.drivers import joins
from testbed.drivers.mptcp_pm import Event
from testbed.errors import LabError
from testbed.linux import netlink, wire
from testbed.linux.wire import Message
from testbed.programs.mptcp import admission
from testbed.programs.mptcp.state import Settings, State

_BUFFER = 4 << 20  # bytes of packets that may wait


class Door(Struct):
    """The socket on which joins are seen, and how they are let in, in words for the log.

    `asked`: each join waits for a verdict. `lacks` is what the kernel can't do that the file asks for.
    """

    sock: socket.socket | None
    asked: bool
    how: str
    lacks: str = ""


def opened(state: State, settings: Settings) -> Door:
    """Install the rules, and hear of joins; LabError if joins were to be refused and the kernel can't."""
    try:
        sock = netlink.connect(wire.NETLINK_NETFILTER)
    except OSError as e:  # a kernel without CONFIG_NETFILTER_NETLINK
        if admission.deciding(settings) or not admission.default(state, settings):
            raise LabError(f"joins can't be refused: the kernel has no netlink of netfilter: {e.strerror}") from e
        return Door(None, asked=False, how=f"not seen: the kernel has no netlink of netfilter: {e.strerror}")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    why = ""
    if admission.deciding(settings):
        for xtables in (False, True):
            refused = netlink.batch(joins.queue(settings.unmanaged == "allow", xtables))
            if refused is None:
                _bound(sock, joins.bind_queue())
                return Door(sock, asked=True, how="each decided by this program (NFQUEUE)")
            why = f"the kernel has no NFQUEUE: {refused}"
    found, left = admission.static(state, settings)
    if (refused := netlink.batch(joins.rules(found))) is not None:
        if found or left:
            raise LabError(f"joins can't be refused: {why or refused}")
        return Door(sock, asked=False, how=f"not seen: {refused}")
    _bound(sock, joins.bind_log())
    how = "decided by static rules" if found or left else "all let in"
    if not why:
        return Door(sock, asked=False, how=how)
    lacks = f"{how}, and not one by one: {why}"
    lacks += f"; {len(left)} rules that state a `side` have no effect" if left else ""
    return Door(sock, asked=False, how=lacks, lacks=lacks)


def changed(door: Door, state: State, settings: Settings) -> str:
    """Let a default that has changed take effect; return "" or the kernel's refusal."""
    if door.asked:
        return ""
    if door.sock is None:
        return door.how
    refused = netlink.batch(joins.rules(admission.static(state, settings)[0]))
    return "" if refused is None else str(refused)


def heard(door: Door) -> Iterator[tuple[int, Event] | None]:
    """Yield each join that has arrived, with its number in the queue; None where the kernel dropped some."""
    for data in netlink.heard(door.sock) if door.sock is not None else ():
        if data is None:
            yield None
            continue
        for kind, _, _, entry in wire.messages(data):
            if (found := joins.parse_message(kind, entry)) is not None:
                yield found


def answer(door: Door, packet: int, allow: bool) -> None:
    """Let a packet of the queue go on, or be answered with a reset."""
    body = joins.verdict(packet, allow)
    assert door.sock is not None, "what is answered came by it"
    door.sock.send(wire.header(len(body), joins.VERDICT, wire.NLM_F_REQUEST, 0) + body)


def _bound(sock: socket.socket, messages: list[Message]) -> None:
    for message in messages:
        if refused := netlink.transact(sock, [message]):
            raise LabError(f"joins can't be seen: {refused[0]}")
    sock.setblocking(False)
