"""What is wrong with events: when they happen, to what, and what they change (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from msgspec.structs import replace

from testbed.drivers.channels import channel
from testbed.language.document import Fault, Path
from testbed.language.explain import Names, name_set, suggest
from testbed.language.moments import GRADUAL, MOST, SHORTEST, link_index, moments, times
from testbed.language.topology import WAYS, Event, Link, Shaping, Topology
from testbed.nodes.endpoint import unnamed
from testbed.nodes.endpoint import wrong as unfit
from testbed.nodes.mptcp import Mptcp
from testbed.nodes.node import called
from testbed.nodes.path_manager import Doing, doing_faults
from testbed.nodes.place import Place
from testbed.plan.endpoints import change, concerns
from testbed.plan.network import Network
from testbed.rules.addresses import wrong
from testbed.rules.fault import end_of_run, there_are
from testbed.rules.links import shaping
from testbed.rules.nodes import sysctl

_AT_NODES = ("command", "sysctl", "endpoint", "mptcp", "mlo_link", "rejoin", "address", "restart")


def faults(topology: Topology, net: Network, nodes: Names, doubt: set[str]) -> Iterator[Fault]:
    """Yield (path, sentence, hint) for each fault."""
    end = end_of_run(topology, doubt)
    for n, event in enumerate(topology.events):
        at: Path = ("events", n)
        if end == 0:
            yield at, "nothing runs: an event needs a workload or a `duration`", ""
        elif end is not None and event.at >= end:
            message = f"the run ends at {end:g} s, and this event is at {event.at:g} s"
            yield (*at, "at"), message, "give a longer `duration`"
        elif end is not None:
            yield from _repeated(event, end, at)
        yield from _lasting(event, at)
        if (event.link is None) == (event.node is None):
            yield at, "an event needs a `link` or a `node`, and not both", ""
        elif event.link is not None:
            yield from _link_event(topology, event, at, doubt)
        else:
            yield from _node_event(net, event, at, nodes, doubt)


def _repeated(event: Event, end: float, at: Path) -> Iterator[Fault]:
    """Yield what is wrong with `every` and `times`."""
    if event.every is None:
        if event.times is not None:
            yield (*at, "times"), "`times` says how often an event is repeated: give the interval, as `every: 2s`", ""
        return
    if event.every < SHORTEST:
        yield (*at, "every"), f"an event is repeated every {SHORTEST * 1e3:g}ms at most", ""
        return
    count = sum(1 for _ in times(event, end))
    last = event.at + (count - 1) * event.every
    if event.times is not None and last >= end:
        message = f"the run ends at {end:g} s, and the last of {event.times} times is at {last:g} s"
        yield (*at, "times"), message, "leave `times` out to repeat it until the run ends, or give a longer `duration`"
    elif event.times is None and count == MOST:
        yield (*at, "every"), f"it would happen more than {MOST} times in {end:g} s", "say how often, as `times: 100`"


def _lasting(event: Event, at: Path) -> Iterator[Fault]:
    """Yield what is wrong with `for` and `ramp`."""
    if event.for_ is not None:
        if event.down is None and event.set is None and event.remove is None:
            yield (
                (*at, "for"),
                "`for` undoes `down`, `set` or `remove` after a time, and this event has none of them",
                "",
            )
        elif not event.for_:
            yield (*at, "for"), "it would be undone at once: give the time that it lasts, such as `for: 500ms`", ""
        elif event.every is not None and event.for_ >= event.every:
            message = f"it lasts {event.for_:g} s and happens again after {event.every:g} s, before it was undone"
            yield (*at, "for"), message, "give a shorter `for`, or a longer `every`"
    if event.ramp is None:
        return
    where = (*at, "ramp")
    if event.set is None:
        yield where, "`ramp` changes a value of `set` gradually, and this event has no `set`", ""
        return
    for span, key in ((event.for_, "for"), (event.every, "every")):
        if span is not None and event.ramp > span:
            yield where, f"it takes {event.ramp:g} s, longer than `{key}: {span:g}s`: give a shorter `ramp`", ""
    if not event.ramp:
        yield where, "a change that takes no time is one without `ramp`: leave it out", ""
    for path, part in (((), event.set), *(((way,), getattr(event.set, way)) for way in WAYS)):
        for key in part.model_fields_set - set(WAYS) if part is not None else ():
            value = getattr(part, key)
            if key not in GRADUAL or not isinstance(value, int | float):
                hint = f"these can: {', '.join(GRADUAL)}"
                yield (*at, "set", *path, key), f"`{key}` can't change gradually to this value", hint


def _link_event(topology: Topology, event: Event, at: Path, doubt: set[str]) -> Iterator[Fault]:
    assert event.link is not None
    n = link_index(topology, event.link)
    if n is None and "links" not in doubt:
        named, known = _links_known(topology)
        hint = suggest(event.link, known) or there_are(named or known)
        yield (*at, "link"), f"there is no link {event.link!r}", hint
    if any(getattr(event, key) is not None for key in _AT_NODES) or event.action == "flush":
        *most, last = (f"`{key}`" for key in _AT_NODES)
        yield at, f"{', '.join(most)} and {last} need a `node`, not a `link`", ""
    elif (event.set is None) == (event.down is None):
        example = "`set: {delay: 80ms}`, `down: true` or `down: false`"
        yield at, f"an event of a link needs exactly one of {example}", ""
    elif event.set is not None and not event.set.model_fields_set:
        yield (*at, "set"), "this sets nothing: give what changes, such as `delay: 80ms`", ""
    elif event.ramp is not None and event.set is not None and n is not None and "links" not in doubt:
        yield from _ramped(topology, event, at)
    if event.set is not None and n is not None and "links" not in doubt:
        yield from _traced(topology.links[n], event.set, at)
    if event.set is not None:
        yield from shaping(event.set, topology.links[n].mtu if n is not None else None, topology, (*at, "set"))


def _traced(link: Link, change: Shaping, at: Path) -> Iterator[Fault]:
    """Yield what an event sets of a direction that follows a trace."""
    for way in WAYS:
        own = getattr(change, way)
        keys = (own.model_fields_set if own is not None else set()) | (change.model_fields_set - {*WAYS, "mtu"})
        if keys and link.followed(way) is not None:
            why = f"{way} of this link follows a trace, which alone changes it"
            yield (*at, "set"), f"an event can't set {', '.join(sorted(keys))} there: {why}", "put it into the trace"
            return


def _ramped(topology: Topology, event: Event, at: Path) -> Iterator[Fault]:
    """Yield a rate that has no value to begin from."""
    begin = next((m for m in moments(topology) if topology.events[m.n] is event), None)
    if begin is None or begin.old is None or begin.new is None:
        return
    for way in WAYS:
        if begin.old.shape(way).rate is None and begin.new.shape(way).rate is not None:
            message = "a rate changes gradually from the one before, and there the link has none"
            yield (*at, "set", "rate"), message, "give the link a `rate`"
            return


@lru_cache(maxsize=1)
def _links_known(topology: Topology) -> tuple[Names, Names]:
    """Return the names of links, and these and their ends."""
    named = [link.name for link in topology.links if link.name]
    return name_set(named), name_set([*named, *(end for link in topology.links for end in link.ends)])


def _node_event(net: Network, event: Event, at: Path, nodes: Names, doubt: set[str]) -> Iterator[Fault]:
    assert event.node is not None
    if event.node not in nodes:
        yield (*at, "node"), f"there is no node {event.node!r}", suggest(event.node, nodes) or there_are(nodes)
        return
    if event.set is not None or event.down is not None:
        yield at, "`set` and `down` need a `link`, not a `node`", ""
    elif (stated := [key for key in _AT_NODES if getattr(event, key) is not None]) and event.action == "flush":
        yield at, f"`action: flush` removes all endpoints: leave out `{stated[0]}`", ""
    elif len(stated) != 1 and event.action != "flush":
        keys = ", ".join(f"`{key}`" for key in _AT_NODES)
        yield at, f"an event at a node needs exactly one of {keys}", ""
    if not doubt & {"links", "nodes", f"nodes.{event.node}"}:
        yield from _wlan_event(net, event, event.node, at)
        yield from _address_event(net, event, event.node, at)
    known = (*net.topology.nodes[event.node].roles(), None)
    if event.restart not in known and f"nodes.{event.node}" not in doubt:
        what = str(event.restart)
        yield (*at, "restart"), f"{event.node} is not {called(what)}", f"it has no `{what}`"
    yield from sysctl(event.sysctl or {}, (*at, "sysctl"))
    role = net.topology.nodes[event.node].mptcp
    if event.mptcp is not None and not doubt & {"links", f"nodes.{event.node}"}:
        yield from _path_manager(event.mptcp, role, net.place(event.node), (*at, "mptcp"))
    if concerns(event) and not doubt & {"links", f"nodes.{event.node}"}:
        yield from _endpoint(net, event, role, at)


def _endpoint(net: Network, event: Event, role: Mptcp | None, at: Path) -> Iterator[Fault]:
    """Yield what is wrong with an event of an endpoint."""
    assert event.node is not None
    where = (*at, "endpoint" if event.endpoint is not None else "action")
    if role is None:
        yield where, f"{event.node} is not an MPTCP host", "give the node `mptcp: {}`"
        return
    endpoint = event.endpoint
    if endpoint is None:
        return
    if event.action == "remove":
        by_id = endpoint.id and endpoint.address is None and endpoint.interface is None
        found = unnamed(endpoint, _during(net, event)) if not by_id else None
        if found is not None and endpoint.id is not None and found[0] == "id":
            found = None  # an ID chooses among the addresses of an interface
    else:
        found = unfit(endpoint, _during(net, event))
    if found is not None:
        key, message = found
        yield (*where, key) if key else where, message, ""
    elif problem := change(net, event).problem:
        hint = "`action: set` changes its flags" if event.action == "add" and "already" in problem else ""
        yield where, problem, hint


def _path_manager(doing: Doing, role: Mptcp | None, place: Place, at: Path) -> Iterator[Fault]:
    if role is None:
        yield at, f"{place.node} is not an MPTCP host", "give the node `mptcp: {path_manager: userspace}`"
    elif role.path_manager is None:
        what = f"the path manager of {place.node} is the kernel's, which takes endpoints instead of commands"
        yield at, what, "use `endpoint`, or give the node `mptcp: {path_manager: userspace}`"
    else:
        yield from (((*at, *path), what, "") for path, what in doing_faults(doing, place))


def _during(net: Network, event: Event) -> Place:
    """Return the node of an event with the addresses that it has then; one that is removed may have gone already."""
    assert event.node is not None
    now = net.place_at(event)
    if event.action != "remove":
        return now
    old = {i.name: i.addresses for i in net.place(event.node).interfaces}
    both = (replace(i, addresses=tuple(dict.fromkeys((*old[i.name], *i.addresses)))) for i in now.interfaces)
    return replace(now, interfaces=tuple(both))


def _wlan_event(net: Network, event: Event, node: str, at: Path) -> Iterator[Fault]:
    """Yield what is wrong with an event of an access point's link, or of a station."""
    if event.mlo_link is None:
        for key in ("remove", "freq"):
            if getattr(event, key) is not None:
                yield (*at, key), f"`{key}` applies to an `mlo_link` of an access point: say which one", ""
    roles = net.topology.nodes[node].roles().values()
    if event.rejoin is not None and not any(role.rejoin(net.place(node)) for role in roles):
        yield (*at, "rejoin"), f"{node} is not a station", ""
    elif event.rejoin is False:
        yield (*at, "rejoin"), "write `rejoin: true`, or remove the event", ""
    if event.mlo_link is None:
        return
    bss = next((b for b in net.air if b.node == node), None)
    if bss is None:
        yield (*at, "mlo_link"), f"{node} is not an access point", ""
        return
    freqs = dict(bss.freqs)
    if event.mlo_link not in freqs:
        yield (*at, "mlo_link"), f"{node} has no link {event.mlo_link}", there_are(list(freqs))
    elif (event.remove is None) == (event.freq is None):
        yield (*at, "mlo_link"), "say what happens to the link with `remove: true`, `remove: false` or `freq: 5200`", ""
    elif event.remove is not None and not bss.mlo:
        yield (*at, "remove"), f"{node} is not an AP MLD: its only channel can't be removed", ""
    elif event.freq is not None:
        old, new = channel(freqs[event.mlo_link]), channel(event.freq)
        if new is None or new.radar:
            why = "not the centre of a 20 MHz channel" if new is None else "a channel with radar detection (DFS)"
            yield (*at, "freq"), f"{event.freq} MHz is {why}", ""
        elif old is not None and old.band != new.band:
            yield (*at, "freq"), f"link {event.mlo_link} is on {old.band}, and {event.freq} MHz is on another band", ""
        elif (other := next((n for n, f in _moved(net, event, freqs).items() if f == event.freq), None)) is not None:
            yield (
                (*at, "freq"),
                f"{event.freq} MHz is then the channel of link {other}: each link needs a channel of its own",
                "",
            )


def _moved(net: Network, event: Event, freqs: dict[int, int]) -> dict[int, int]:
    """Return the frequencies (MHz) of an access point's links at the time of an event, after those before it."""
    before = [e for e in net.happenings[str(event.node)] if e.freq is not None and e.at < event.at]
    return freqs | {e.mlo_link: e.freq for e in before if e.mlo_link in freqs and e.freq}


def _address_event(net: Network, event: Event, node: str, at: Path) -> Iterator[Fault]:
    """Yield what is wrong with a change of addresses."""
    if (change := event.address) is None:
        return
    place, where = net.place(node), (*at, "address")
    interface = place.interface(change.interface)
    if interface is None:
        names = [i.name for i in place.interfaces]
        yield (*where, "interface"), place.lacks(change.interface), suggest(change.interface, names)
        return
    if interface.port:
        yield (*where, "interface"), f"{change.interface} is a port of a bridge, and a port has no address", ""
    if change.remove is None and change.add is None:
        yield where, "give an address to `remove`, one to `add`, or both", ""
    if change.remove is not None and change.remove not in interface.addresses:
        before = [e.address.add for e in net.happenings[node] if e.address and e.at < event.at]
        if change.remove not in before:
            have = ", ".join(interface.addresses) or "none"
            yield (
                (*where, "remove"),
                f"{change.remove} is not an address of {node}:{change.interface} (it has {have})",
                "",
            )
    if change.add is not None and (problem := wrong(change.add)):
        yield (*where, "add"), problem, ""
    elif change.add is not None:
        other = net.owners.get(change.add.partition("/")[0])
        if other is not None and (other.node, other.name) != (node, change.interface):
            yield (*where, "add"), f"{change.add} is already the address of {other.node}:{other.name}", ""
