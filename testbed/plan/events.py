"""What an event of a run does: to a link, or at a node (pure)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache

from testbed.drivers import hostapd, tc
from testbed.drivers.link import MTU, AddressAdd, LinkSet
from testbed.drivers.route import RouteAdd, RuleAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.language.moments import Moment, driven, link_index, moments, of_event
from testbed.language.topology import WAYS, Event, Readdress, Topology
from testbed.nodes.path_manager import asked
from testbed.plan.endpoints import change, concerns
from testbed.plan.interfaces import link_addresses
from testbed.plan.lab import Plan
from testbed.plan.network import end_of
from testbed.steps import Configure, Delete, Spawn, Step


def event_steps(plan: Plan, n: int) -> Iterator[Step]:
    """Yield the steps of an event of the file, by its number, at all of its times."""
    for k, moment in enumerate(of_event(plan.topology)[n]):
        if moment.event.link is not None:
            yield from _link_event(plan, moment)
        else:
            yield from _node_event(plan, moment.event, f"event-{n}" if k == 0 else f"event-{n}-{k}")


def _link_event(plan: Plan, moment: Moment) -> Iterator[Step]:
    event = moment.event
    n = link_index(plan.topology, str(event.link))
    assert n is not None
    ends = [end_of(text) for text in plan.topology.links[n].ends]
    if event.down is not None:
        for node, ifname in ends:
            yield Configure(node, LinkSet(ifname, up=not event.down), event.at)
        if not event.down:
            yield from _restored(plan, ends, event.at)
        return
    assert moment.old is not None
    assert moment.new is not None
    for way, (node, ifname) in zip(WAYS, ends, strict=True):
        chain = tc.driven if (n, way) in driven(plan.topology) else tc.shape
        before, after = (chain(ifname, link.shape(way)) for link in (moment.old, moment.new))
        for request in tc.reshaped(before, after):
            yield Configure(node, request, event.at)
        if moment.new.mtu != moment.old.mtu:
            yield Configure(node, LinkSet(ifname, mtu=moment.new.mtu or MTU), event.at)


def _restored(plan: Plan, ends: list[tuple[str, str]], at: float) -> Iterator[Step]:
    """Yield again what the kernel drops when a link goes down: routes by it, and IPv6 addresses on it."""
    for node, ifname in ends:
        for address in link_addresses(plan.network, node, ifname):
            yield Configure(node, address, at)
    dead = _down(plan.topology, at)
    found = [
        (k, Configure(node, left, at))
        for node in dict.fromkeys(node for node, _ in ends)
        for k, request in plan.requests.get(node, ())
        if isinstance(request, RouteAdd) and any((node, hop.dev) in ends for hop in request.hops())
        if (left := request.without(dead.get(node, ()))) is not None
    ]
    yield from (step for _, step in sorted(found, key=lambda pair: pair[0]))


def _down(topology: Topology, at: float) -> dict[str, set[str]]:
    """Return the interfaces of each node whose links are down after the events of a time."""
    times, states = _downs(topology)
    links = states[bisect_right(times, at) - 1]
    found: dict[str, set[str]] = {}
    for node, ifname in (end_of(text) for n in links for text in topology.links[n].ends):
        found.setdefault(node, set()).add(ifname)
    return found


@lru_cache(maxsize=1)
def _downs(topology: Topology) -> tuple[list[float], list[frozenset[int]]]:
    """Return the times at which the set of links that are down changes, and the set from then on."""
    times, states = [-1.0], [frozenset[int]()]
    for m in moments(topology):
        n = link_index(topology, m.event.link) if m.event.link is not None else None
        if n is not None and m.event.down is not None and (n in states[-1]) != m.event.down:
            times.append(m.event.at)
            states.append(states[-1] | {n} if m.event.down else states[-1] - {n})
    return times, states


def _node_event(plan: Plan, event: Event, name: str) -> Iterator[Step]:
    assert event.node is not None
    roles = plan.topology.nodes[event.node].roles()
    if event.command is not None:
        # Not awaited at its time: a slow command must not delay the events after it.
        yield Spawn(event.node, name, event.command, at=event.at, within=60)
    for key, value in (event.sysctl or {}).items():
        yield Configure(event.node, SysctlSet(key, str(value)), event.at)
    if event.restart is not None:
        for request in roles[event.restart].restart(plan.network.place(event.node)):
            yield Configure(event.node, request, event.at)
    if event.mlo_link is not None:
        yield from _of_link(plan, event.node, event.mlo_link, event)
    if event.mptcp is not None:
        yield Configure(event.node, asked(event.mptcp), event.at)
    for role in roles.values() if event.rejoin else ():
        for request in role.rejoin(plan.network.place(event.node)):
            yield Configure(event.node, request, event.at)
    if event.address is not None:
        yield from _readdressed(plan, event.node, event.address, event.at)
    if concerns(event):
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
        devs = [hop.dev for hop in request.hops()] if isinstance(request, RouteAdd) else []
        if isinstance(request, RouteAdd) and change.interface in devs and request.version() == version:
            yield Configure(node, request, at)
    # An MPTCP host routes by source: the new address takes the table of the old one.
    own = [i for i in plan.network.interfaces[node] if i.name == change.interface]
    rules = [r for r in mine if isinstance(r, RuleAdd) and own and r.source in own[0].hosts()]
    for rule in [r for r in rules if (":" in r.source) == (version == 6)][:1]:
        yield Configure(node, RuleAdd(change.add.partition("/")[0], rule.table), at)
