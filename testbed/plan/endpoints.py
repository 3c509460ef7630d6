"""Which endpoints an MPTCP host has after each event: each address keeps its ID for the whole run (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from msgspec import Struct

from testbed.drivers.mptcp import LIMIT, EndpointAdd, EndpointFlags
from testbed.language.topology import Event, Topology
from testbed.nodes.mptcp import JOINING, Mptcp, addresses, planned
from testbed.plan.assemble import network
from testbed.plan.network import Network
from testbed.steps import Delete, Request

_FIRST = 100  # IDs of addresses that only events name; those of the plan count from 1
_LAST = 255


class Change(Struct, frozen=True):
    """What an event does to the endpoints of its node, or why it can't."""

    requests: tuple[Request, ...] = ()
    problem: str = ""


def change(net: Network, event: Event) -> Change:
    """Return what an event with an `endpoint` does."""
    assert event.node is not None
    every = _changes(net.topology).get((event.node, event.at), ())
    return next((found for known, found in every if known == event), Change())


def opening(net: Network, name: str) -> frozenset[str]:
    """Return the addresses from which a host comes to open subflows by its events."""
    events = [e for e in net.happenings[name] if e.endpoint is not None and JOINING & set(e.endpoint.flags)]
    return frozenset(a for e in events if e.endpoint for a, _ in addresses(e.endpoint, net.place_at(e)))


@lru_cache(maxsize=1)
def _changes(topology: Topology) -> dict[tuple[str, float], list[tuple[Event, Change]]]:
    net = network(topology)
    found: dict[tuple[str, float], list[tuple[Event, Change]]] = {}
    for name in dict.fromkeys(e.node for e in topology.events if e.endpoint is not None and e.node in net.interfaces):
        assert name is not None
        for event, result in _of(net, name):
            found.setdefault((name, event.at), []).append((event, result))
    return found


def _of(net: Network, name: str) -> Iterator[tuple[Event, Change]]:
    live = {e.address: e for e in planned(net.topology.nodes[name].mptcp or Mptcp(), net.place(name))}
    ids = {address: e.id for address, e in live.items()}
    for event in net.happenings[name]:
        if (endpoint := event.endpoint) is None:
            continue
        pairs = addresses(endpoint, net.place_at(event))
        if event.action == "remove":
            # By the interface that they were added with: the addresses may have changed since.
            named = {a for a, _ in pairs} | {endpoint.address}
            gone = [e for a, e in live.items() if a in named or (endpoint.interface and e.dev == endpoint.interface)]
            what = endpoint.address or endpoint.interface
            for e in gone:
                del live[e.address]
            yield event, Change(tuple(map(Delete, gone)), "" if gone else f"{name} has no endpoint {what} at that time")
            continue
        made = []
        for address, dev in pairs:
            new = _FIRST + sum(n >= _FIRST for n in ids.values()) % (_LAST - _FIRST + 1)
            number = ids.setdefault(address, new) if event.action == "add" else ids.get(address, 0)
            made.append(EndpointAdd(address, number, endpoint.flags, dev, endpoint.port or 0))
        if event.action == "set":
            # The kernel finds it by its address, and may have made it itself for an address that was announced.
            live |= {e.address: e for e in made if e.address in live}
            yield event, Change(tuple(map(EndpointFlags, made)))
            continue
        if twice := [e.address for e in made if e.address in live]:
            yield event, Change(problem=f"{name} already has the endpoint {twice[0]} at that time")
            continue
        live |= {e.address: e for e in made}
        many = f"{name} then has {len(live)} endpoints, but the kernel keeps at most {LIMIT}"
        yield event, Change(tuple(made), many if len(live) > LIMIT else "")
