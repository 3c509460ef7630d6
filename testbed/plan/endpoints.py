"""Which endpoints an MPTCP host has after each event: each address keeps its ID for the whole run (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from msgspec import Struct

from testbed.drivers.mptcp import LIMIT, EndpointAdd, EndpointDel, EndpointFlags, EndpointFlush
from testbed.language.topology import Event, Topology
from testbed.nodes.endpoint import JOINING, MOST, Endpoint, addresses, planned, unmapped
from testbed.nodes.mptcp import Mptcp
from testbed.nodes.place import Place
from testbed.plan.assemble import network
from testbed.plan.network import Network
from testbed.steps import Delete, Request

_FIRST = 100  # IDs of addresses that only events name; those of the plan count from 1


class Change(Struct, frozen=True):
    """What an event does to the endpoints of its node, or why it can't."""

    requests: tuple[Request, ...] = ()
    problem: str = ""


def change(net: Network, event: Event) -> Change:
    """Return what an event does to endpoints."""
    assert event.node is not None
    every = _changes(net.topology).get((event.node, event.at), ())
    return next((found for known, found in every if known == event), Change())


def concerns(event: Event) -> bool:
    """Say whether an event is about endpoints."""
    return event.endpoint is not None or event.action == "flush"


def opening(net: Network, name: str) -> frozenset[str]:
    """Return the addresses from which a host comes to open subflows by its events."""
    events = [e for e in net.happenings[name] if e.endpoint is not None and JOINING & set(e.endpoint.flags)]
    return frozenset(unmapped(a) for e in events if e.endpoint for a, _ in addresses(e.endpoint, net.place_at(e)))


@lru_cache(maxsize=1)
def _changes(topology: Topology) -> dict[tuple[str, float], list[tuple[Event, Change]]]:
    net = network(topology)
    found: dict[tuple[str, float], list[tuple[Event, Change]]] = {}
    for name in dict.fromkeys(e.node for e in topology.events if concerns(e) and e.node in net.interfaces):
        assert name is not None
        for event, result in _of(net, name):
            found.setdefault((name, event.at), []).append((event, result))
    return found


def _of(net: Network, name: str) -> Iterator[tuple[Event, Change]]:
    role = net.topology.nodes[name].mptcp or Mptcp()
    live = {e.address: e for e in planned(role.endpoints, net.place(name))}
    ids = {address: e.id for address, e in live.items()}
    most = max(LIMIT, len(live))  # a file with more runs only where the kernel keeps more
    for event in filter(concerns, net.happenings[name]):
        if (endpoint := event.endpoint) is None:
            live.clear()
            yield event, Change((EndpointFlush(),))
            continue
        pairs = addresses(endpoint, net.place_at(event))
        if event.action == "remove":
            gone = _named(live, endpoint, net.place_at(event))
            for e in gone:
                live.pop(e.address, None)
            first = tuple(EndpointDel(0, a) for a, _ in pairs) if endpoint.id == 0 else ()
            what = endpoint.address or endpoint.interface or f"with the ID {endpoint.id}"
            missing = "" if gone or first else f"{name} has no endpoint {what} at that time"
            yield event, Change((*first, *map(Delete, gone)), missing)
            continue
        made = []
        for address, dev in pairs:
            new = _FIRST + sum(n >= _FIRST for n in ids.values()) % (MOST - _FIRST + 1)
            if event.action == "add":
                number = ids[address] = endpoint.id or ids.get(address, new)
            else:
                number = ids.get(address, 0)
            made.append(EndpointAdd(address, number, endpoint.flags, dev, endpoint.port or 0))
        if event.action == "set":
            # The kernel finds it by its address, and may have made it itself for an address that was announced.
            live |= {e.address: e for e in made if e.address in live}
            yield event, Change(tuple(map(EndpointFlags, made)))
            continue
        used = {e.id: e.address for e in live.values()}
        if twice := [e.address for e in made if e.address in live]:
            yield event, Change(problem=f"{name} already has the endpoint {twice[0]} at that time")
            continue
        if taken := [e for e in made if e.id in used]:
            what = f"{used[taken[0].id]} has the ID {taken[0].id} at that time"
            yield event, Change(problem=f"{what}: give {taken[0].address} another `id`")
            continue
        live |= {e.address: e for e in made}
        many = f"{name} then has {len(live)} endpoints, but the kernel keeps at most {most}"
        yield event, Change(tuple(made), many if len(live) > most else "")


def _named(live: dict[str, EndpointAdd], endpoint: Endpoint, place: Place) -> list[EndpointAdd]:
    """Return the endpoints that a removal names: by an address, or by the interface that they were added with.

    Its addresses may have changed since; and by the ID 0 none is meant, but the address of the first subflow.
    """
    if endpoint.id == 0:
        return []
    if endpoint.address is None and endpoint.interface is None:
        return [e for e in live.values() if e.id == endpoint.id]
    named = {a for a, _ in addresses(endpoint, place)}
    dev = endpoint.interface if endpoint.address is None else None
    found = (e for a, e in live.items() if a in named or (dev and e.dev == dev))
    return [e for e in found if endpoint.id in (None, e.id)]
