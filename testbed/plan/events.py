"""What an event of a run does: to a link, or at a node (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from testbed.drivers import hostapd, tc
from testbed.drivers.link import AddressAdd, LinkSet
from testbed.drivers.route import RouteAdd, RuleAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.language.topology import WAYS, Direction, Event, Link, Readdress, Shaping, Topology
from testbed.plan.endpoints import change
from testbed.plan.interfaces import link_addresses
from testbed.plan.lab import Plan
from testbed.plan.network import end_of
from testbed.steps import Configure, Delete, Spawn, Step


def event_steps(plan: Plan, event: Event) -> Iterator[Step]:
    """Yield the steps of one event."""
    if event.link is not None:
        n = link_index(plan.topology, event.link)
        assert n is not None
        yield from _link_event(plan, n, event)
    else:
        yield from _node_event(plan, event)


def _link_event(plan: Plan, n: int, event: Event) -> Iterator[Step]:
    link = plan.topology.links[n]
    ends = [end_of(text) for text in link.ends]
    if event.down is not None:
        for node, ifname in ends:
            yield Configure(node, LinkSet(ifname, up=not event.down), event.at)
        if not event.down:
            yield from _restored(plan, ends, event.at)
        return
    assert event.set is not None
    changed = _changed(plan.topology)[n, event.at]
    for end, shape in changed.directions():
        node, ifname = end_of(end)
        for qdisc in tc.shape(ifname, shape):
            yield Configure(node, qdisc, event.at)
        if event.set.mtu is not None:
            yield Configure(node, LinkSet(ifname, mtu=event.set.mtu), event.at)


@lru_cache(maxsize=1)
def _changed(topology: Topology) -> dict[tuple[int, float], Link]:
    """Return what each link is at the time of each of its events.

    What earlier events of a link set stays: an event changes what it names and nothing else.
    """
    found: dict[tuple[int, float], Link] = {}
    now: dict[int, Link] = {}
    for event in sorted(topology.events, key=lambda e: e.at):
        n = link_index(topology, event.link) if event.link else None
        if n is not None and event.set:
            found[n, event.at] = now[n] = _laid(now.get(n, topology.links[n]), event.set)
    return found


def _laid(link: Link, over: Shaping) -> Link:
    """Return a link with the values that an event states, for each direction what it says of it."""
    update: dict[str, object] = {}
    for name in over.model_fields_set:
        value = getattr(over, name)
        if name in WAYS:
            own = getattr(link, name)
            stated = {k: getattr(value, k) for k in value.model_fields_set}
            value = value if own is None else own.model_copy(update=stated)
        update[name] = value
    # A value for both directions overrides what one direction said before.
    both = {k for k in update if k not in WAYS}
    for way in WAYS:
        own = getattr(link, way)
        if own is not None and way not in update:
            update[way] = own.model_copy(update=dict.fromkeys(both & set(Direction.model_fields)))
    return link.model_copy(update=update)


def _restored(plan: Plan, ends: list[tuple[str, str]], at: float) -> Iterator[Step]:
    """Yield again what the kernel drops when a link goes down: routes by it, and IPv6 addresses on it."""
    for node, ifname in ends:
        for address in link_addresses(plan.network, node, ifname):
            yield Configure(node, address, at)
    found = [
        (k, Configure(node, request, at))
        for node in dict.fromkeys(node for node, _ in ends)
        for k, request in plan.requests.get(node, ())
        if isinstance(request, RouteAdd) and (node, request.dev) in ends
    ]
    yield from (step for _, step in sorted(found, key=lambda pair: pair[0]))


def _node_event(plan: Plan, event: Event) -> Iterator[Step]:
    assert event.node is not None
    roles = plan.topology.nodes[event.node].roles()
    if event.command is not None:
        # Not awaited at its time: a slow command must not delay the events after it.
        name = f"event-{next(n for n, other in enumerate(plan.topology.events) if other is event)}"
        yield Spawn(event.node, name, event.command, at=event.at, within=60)
    for key, value in (event.sysctl or {}).items():
        yield Configure(event.node, SysctlSet(key, str(value)), event.at)
    if event.restart is not None:
        for request in roles[event.restart].restart(plan.network.place(event.node)):
            yield Configure(event.node, request, event.at)
    if event.mlo_link is not None:
        yield from _of_link(plan, event.node, event.mlo_link, event)
    for role in roles.values() if event.rejoin else ():
        for request in role.rejoin(plan.network.place(event.node)):
            yield Configure(event.node, request, event.at)
    if event.address is not None:
        yield from _readdressed(plan, event.node, event.address, event.at)
    if event.endpoint is not None:
        for request in change(plan.network, event).requests:
            yield Configure(event.node, request, event.at)


def _of_link(plan: Plan, node: str, link_id: int, event: Event) -> Iterator[Step]:
    """Yield what happens to a link of an access point."""
    ap = plan.topology.nodes[node].access_point
    assert ap is not None
    if event.freq is not None:
        yield Configure(node, hostapd.channel_switch(node, ap.name, link_id, event.freq, ap.mlo()), event.at)
    elif event.remove:
        yield Configure(node, hostapd.link_remove(node, ap.name, link_id), event.at)
    else:
        # The link is there before it has a channel, and mac80211 sends what is group addressed on every link that is
        # there: hwsim would drop it with a WARNING. hostapd answers when the link beacons.
        yield Configure(node, tc.gate(ap.name, closed=True), event.at)
        yield Configure(node, hostapd.link_return(node, ap.name, link_id), event.at)
        yield Configure(node, tc.gate(ap.name, closed=False), event.at)


def _readdressed(plan: Plan, node: str, change: Readdress, at: float) -> Iterator[Step]:
    """Yield the change of an interface's addresses, and again what the kernel drops with the last of a network."""
    if change.remove is not None:
        yield Configure(node, Delete(AddressAdd(change.remove, change.interface)), at)
    if change.add is None:
        return
    yield Configure(node, AddressAdd(change.add, change.interface), at)
    version = 6 if ":" in change.add else 4
    mine = [request for _, request in plan.requests.get(node, ())]
    for request in mine:
        if isinstance(request, RouteAdd) and request.dev == change.interface and request.version() == version:
            yield Configure(node, request, at)
    # An MPTCP host routes by source: the new address takes the table of the old one.
    own = [i for i in plan.network.interfaces[node] if i.name == change.interface]
    rules = [r for r in mine if isinstance(r, RuleAdd) and own and r.source in own[0].hosts()]
    for rule in [r for r in rules if (":" in r.source) == (version == 6)][:1]:
        yield Configure(node, RuleAdd(change.add.partition("/")[0], rule.table), at)


def link_index(topology: Topology, name: str) -> int | None:
    """Return the number of the link with a name, or with an end `node:interface`."""
    return _numbers(topology).get(name)


@lru_cache(maxsize=1)
def _numbers(topology: Topology) -> dict[str, int]:
    found: dict[str, int] = {}
    for n, link in enumerate(topology.links):
        for name in filter(None, (link.name, *link.ends)):
            found.setdefault(name, n)
    return found
