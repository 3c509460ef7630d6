"""What no single value shows: names that must exist, addresses that must fit, flows that must have a way (pure).

Every fault is (path in the file, sentence, hint). Links without two good ends are left out of the planned network,
so that the rest of the file is judged all the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from testbed.drivers.channels import channel
from testbed.language.document import Fault, Path
from testbed.language.explain import Names, name_set, suggest
from testbed.language.topology import NODE, SHAPES, WAYS, Direction, Event, Link, Shaping, Topology, Way, Work
from testbed.metrics import table
from testbed.nodes.node import Node, called, figured
from testbed.nodes.place import Place, misnamed
from testbed.plan.addresses import Net, NoRoom
from testbed.plan.assemble import ends, network
from testbed.plan.events import link_index
from testbed.plan.network import WILD, Network
from testbed.rules import amt
from testbed.rules import multicast as groups
from testbed.rules import names as naming
from testbed.rules.fault import Written
from testbed.rules.names import MACHINE as _MACHINE
from testbed.spec import Spec
from testbed.units import interface_of

_SYSCTL = re.compile(r"net(\.[A-Za-z0-9_@+-]+(/[A-Za-z0-9_@+-]+)*)+")  # a slash is a dot in a device's name
_LINK = 64  # characters of a name
_VALUE = 4096  # characters of a kernel parameter: no more is read back
_FILTER = 4096  # characters of a filter
_PATTERN = 200  # characters of a pattern: a name of each has 32 and 15, and a set such as [ab] stands for one of them
# What libpcap and dumpcap take for another source than an interface of that name: its number in their list, standard
# input, all interfaces, and sources that are told by how their names begin (libpcap: pcap.c, capture_source_types).
_DEVICE = re.compile("-|[0-9]+|any|(usbmon|bluetooth|bluetooth-monitor|nflog|nfqueue|dbus-|rdmasniff|netmap).*")
_NAME = 255  # characters of a metric's
_METRIC = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.[A-Za-z0-9_.%@+-]+")


def faults(topology: Topology, written: Written, like: Topology | None = None) -> Iterator[Fault]:
    """Yield everything that does not fit together; parts shared with `like`, which has no faults, are not checked.

    A fault in `written.doubt` hides those that it may cause: for a mistyped end of a link, report that typo and not
    the missing interface.
    """
    if like is not None and (reshaped := _reshaped(topology, like)) is not None:
        for n in reshaped:
            yield from _shaping(topology.links[n], topology.links[n].mtu, topology, ("links", n))
        return
    nodes, doubt = name_set(written.nodes), set(written.doubt)
    yield from naming.faults(topology, nodes)
    found = list(_links(topology, nodes))
    yield from found
    no_end = {path[1] for path, _, _ in found if path[2:3] == ("ends",)}
    if no_end:
        doubt.add("links")
    index = [n for n in range(len(topology.links)) if n not in no_end]
    links = tuple(topology.links[n] for n in index)
    try:
        net = network(_sound_topology(topology, links))
    except NoRoom as e:
        at = ("links", index[int(e.at[1])], "ends") if e.at[0] == "links" else e.at
        yield at, str(e), "a shorter prefix length has room for more"
        return
    for path, message, hint in _addresses(net, topology, links):
        yield ("links", index[int(path[1])], *path[2:]) if path[0] == "links" else path, message, hint
    for path, message, hint in naming.shared((i for found in net.interfaces.values() for i in found), nodes):
        yield ("links", index[int(path[1])], *path[2:]) if path[0] == "links" else path, message, hint
    yield from _nodes(net, doubt)
    yield from amt.faults(net) if not doubt & {"links", "nodes"} else ()
    yield from _workloads(net, nodes, doubt)
    yield from groups.crowded(net) if not doubt & {"links", "nodes", "workloads"} else ()
    yield from _captures(net, nodes, doubt)
    yield from _events(topology, net, nodes, doubt)
    yield from _checks(topology, net, written, doubt)
    if not 0.02 <= topology.samples.every <= 60:
        yield ("samples", "every"), "counters are read every 20ms to 60s", ""


def _reshaped(topology: Topology, like: Topology) -> list[int] | None:
    """Return the links that are shaped differently when that is all that differs between two topologies, else None."""
    same = (_same(getattr(topology, key), getattr(like, key)) for key in Topology.model_fields if key != "links")
    if len(topology.links) != len(like.links) or not all(same):
        return None
    found = [n for n, (link, old) in enumerate(zip(topology.links, like.links, strict=True)) if link is not old]
    plugs = (
        (getattr(topology.links[n], key), getattr(like.links[n], key))
        for n in found
        for key in Link.model_fields
        if key not in SHAPES
    )
    return found if all(new == old for new, old in plugs) else None


def _same(new: object, old: object) -> bool:
    """Say whether two parts of topologies are the same, or of the same objects."""
    if isinstance(new, dict) and isinstance(old, dict):
        return list(new) == list(old) and all(value is old[key] for key, value in new.items())
    if isinstance(new, tuple) and isinstance(old, tuple):
        return len(new) == len(old) and all(a is b for a, b in zip(new, old, strict=True))
    return new is old or new == old


def _links(topology: Topology, nodes: Names) -> Iterator[Fault]:
    seen: dict[str, int] = {}
    names: dict[str, int] = {}
    for n, link in enumerate(topology.links):
        at = ("links", n)
        if link.name is not None:
            if link.name in names:
                other = "-".join(topology.links[names[link.name]].ends)
                yield (*at, "name"), f"the link {other} is named {link.name!r} already", ""
            names.setdefault(link.name, n)
            if ":" in link.name or not link.name:
                yield (*at, "name"), f"{link.name!r} is no name of a link: it is not empty and has no colon", ""
            elif len(link.name) > _LINK or not link.name.isprintable():
                what = f"at most {_LINK} characters, all of them printable"
                yield (*at, "name"), f"{link.name!r} is not a name of a link: {what}", ""
        for e, text in enumerate(link.ends):
            place = (*at, "ends", e)
            node, colon, ifname = text.partition(":")
            if not colon:
                example = f"{text or 'client'}:eth0"
                yield place, f"{text!r} is no end of a link: write node:interface, such as {example}", ""
                continue
            if node not in nodes:
                yield place, f"there is no node {node!r}", suggest(node, nodes) or _known(nodes)
            if problem := misnamed(ifname):
                yield place, problem, ""
            elif seen.get(text) == n:
                yield place, f"{text} is both ends: a link joins two interfaces", ""
            elif text in seen:
                other = _called(topology.links[seen[text]])
                yield place, f"{text} is an end of {other} already: an interface has one link", ""
            seen.setdefault(text, n)
            for k, address in enumerate(link.stated(e) or ()):
                if problem := _address(address):
                    yield (*at, "addresses", e, k), problem, ""
        yield from _shaping(link, link.mtu, topology, at)


def _called(link: Link) -> str:
    return f"the link {link.name or '-'.join(link.ends)}"


def _shaping(what: Shaping, mtu: int | None, topology: Topology, at: Path) -> Iterator[Fault]:
    """Yield what can't be: of a link, or of what an event changes of one, whose other values are not known here."""
    whole = isinstance(what, Link)
    if what.mtu is not None and what.mtu < 1280 and "ipv6" in topology.families:
        hint = "or `families: [ipv4]`"
        yield (*at, "mtu"), f"IPv6 takes an mtu of at least 1280 (RFC 8200 section 5), not {what.mtu}", hint
    parts: tuple[tuple[tuple[Way, ...], Direction | None], ...]
    parts = ((WAYS, what), *(((way,), getattr(what, way)) for way in WAYS))
    for keys, part in parts:
        if part is None:
            continue
        place = (*at, *keys) if len(keys) == 1 else at
        vague = (part.jitter, part.reorder, part.distribution, part.burst)  # these belong to another key
        ways = [what.shape(key) for key in keys] if any(v is not None for v in vague) else []
        if whole and part.jitter is not None and any(w.delay is None for w in ways):
            yield (*place, "jitter"), "jitter varies a delay: state `delay` as well", ""
        if whole and part.reorder is not None and any(not w.delay for w in ways):
            yield (*place, "reorder"), "reordering lets packets overtake delayed ones: state `delay` as well", ""
        if whole and part.distribution is not None and any(w.jitter is None for w in ways):
            yield (*place, "distribution"), "a distribution is that of the jitter: state `jitter` as well", ""
        if whole and part.burst is not None and any(w.rate is None for w in ways):
            yield (*place, "burst"), "a burst belongs to a rate: state `rate` as well", ""
        frame = (what.mtu or mtu or 1500) + 14
        if part.burst is not None and part.burst < frame:
            yield (*place, "burst"), f"a burst below one frame lets no packet through: state at least {frame}b", ""
        if part.queue is not None and part.queue.discipline == "bfifo" and part.queue.packets is not None:
            message = "bfifo counts bytes: write `limit: 64kb`, or choose another discipline"
            yield (*place, "queue", "packets"), message, ""
        if part.queue is not None and part.queue.discipline != "bfifo" and part.queue.limit is not None:
            message = f"{part.queue.discipline} counts packets: write `packets: 1000`"
            yield (*place, "queue", "limit"), message, ""


@lru_cache(maxsize=8192)
def _address(text: str) -> str:
    """Say what is wrong with an address by itself, "" when nothing is."""
    if "/" not in text:
        return f"{text!r} has no prefix length: write it as 192.0.2.1/24"
    try:
        parsed = interface_of(text)
    except ValueError:
        return f"{text!r} is no IP address"
    if "%" in text:
        return f"{text!r} names an interface: its place in `addresses` does that"
    if parsed.ip.is_multicast or parsed.ip.is_unspecified or parsed.ip.is_loopback:
        return f"{parsed.ip} is no address of a host (multicast, unspecified or loopback)"
    short = parsed.network.prefixlen >= parsed.max_prefixlen - 1
    if not short and parsed.ip == parsed.network.network_address:
        return f"{parsed.ip} is the address of the network {parsed.network} itself: the hosts follow it"
    if not short and parsed.version == 4 and parsed.ip == parsed.network.broadcast_address:
        return f"{parsed.ip} is the broadcast address of {parsed.network}: the hosts precede it"
    return ""


def _sound_topology(topology: Topology, links: tuple[Link, ...]) -> Topology:
    """Return the topology with these links, and without the addresses that are none; itself when there is no such."""
    sound = tuple(map(_sound, links))
    nodes = {n: _sound_node(x) for n, x in topology.nodes.items()}
    if sound == topology.links and nodes == topology.nodes:
        return topology  # whose network the plan asks for again
    return topology.model_copy(update={"links": sound, "nodes": nodes})


def _sound(link: Link) -> Link:
    """Return the link without the addresses that are none."""
    if not any(_address(a) for e in range(2) for a in link.stated(e) or ()):
        return link
    stated = [[a for a in link.stated(e) or () if not _address(a)] for e in range(2)]
    return link.model_copy(update={"addresses": stated})


def _sound_node(node: Node) -> Node:
    """Return the node with roles whose interfaces have no addresses that are none."""
    update: dict[str, object] = {}
    for field, role in node.roles().items():
        given: tuple[str, ...] = getattr(role, "addresses", None) or ()
        if isinstance(role, Spec) and any(map(_address, given)):
            good = tuple(a for a in given if not _address(a))
            update[field] = role.model_copy(update={"addresses": good})
    return node.model_copy(update=update) if update else node


def _addresses(net: Network, topology: Topology, links: Sequence[Link]) -> Iterator[Fault]:
    """Yield what is wrong between addresses; `topology` and `links` are as they were written, the network is sound."""
    owners: dict[str, str] = {}
    stated: dict[tuple[int, int], list[Stated]] = {}
    written = {end.at: end for end in ends(topology)}
    for end in ends(net.topology):
        text, on_link = f"{end.node}:{end.name}", end.at[0] == "links"
        interface = next(i for i in net.named[end.node, end.name] if i.kind == end.kind)
        # Those of links were judged by themselves, and the network is without the bad ones.
        given = (links[int(end.at[1])].stated(int(end.at[3])) if on_link else written[end.at].stated) or ()
        firsts = set()
        for k, address in enumerate(given):
            place = ("links", end.at[1], "addresses", end.at[3], k) if on_link else (*end.at, "addresses", k)
            if problem := _address(address):
                if not on_link:
                    yield place, problem, ""
                continue
            parsed = interface_of(address)
            mine = Stated(parsed.network, text, end.medium, place[: 3 if on_link else 4])
            known = stated.setdefault((interface.segment, parsed.version), [])
            if interface.port:
                yield place, f"{text} is a port of a bridge, which has no address: give it to the other end", ""
            elif parsed.version not in net.families:
                yield place, f"{parsed.ip} is an IPv{parsed.version} address, and `families` leaves these out", ""
            elif (other := owners.setdefault(str(parsed.ip), text)) is not text:
                yield place, f"{parsed.ip} is the address of {other} already", ""
            elif known and parsed.version not in firsts and known[0].network != mine.network:
                joined = f"{known[0].end}, to which a link or bridge joins it, is on {known[0].network}"
                yield place, f"{text} is on {mine.network}, but {joined}", ""
            elif mine.network not in [other.network for other in known]:
                known.append(mine)
            firsts.add(parsed.version)
    for version in (4, 6):
        yield from _overlaps([s for (_, v), found in stated.items() if v == version for s in found])


class Stated(Struct, frozen=True):
    """A network that the author gave to an end, the number of its medium, and where."""

    network: Net
    end: str
    medium: int
    at: Path


def _overlaps(stated: list[Stated]) -> Iterator[Fault]:
    """Yield the networks that overlap another: in order, one that begins before an earlier one's end."""
    widest: Stated | None = None
    for mine in sorted(stated, key=lambda s: (int(s.network.network_address), s.network.prefixlen)):
        if widest is None or int(mine.network.network_address) > int(widest.network.broadcast_address):
            widest = mine
            continue
        late, early = sorted((widest, mine), key=lambda s: -s.medium)
        what = f"{late.network} of {late.end} overlaps {early.network} of {early.end}"
        yield late.at, f"{what}: a link has a network of its own, or a bridge joins them", ""
        widest = max(widest, mine, key=lambda s: int(s.network.broadcast_address))


def _nodes(net: Network, doubt: set[str]) -> Iterator[Fault]:
    for name, node in net.topology.nodes.items():
        place = net.place(name)
        for field, role in node.roles().items():
            # A role of this node that is faulty may be what brings a port of its bridge.
            unsure = "links" in doubt or (role.switch() is not None and f"nodes.{name}" in doubt)
            for path, message in role.faults(place) if not unsure else ():
                yield ("nodes", name, field, *path), message, ""
        yield from _sysctl(node.sysctl, ("nodes", name, "sysctl"))
        own = [interface_of(a) for i in place.interfaces for a in i.addresses] if node.routes else []
        for n, route in enumerate(node.routes):
            field, message = _route(route.to, route.via, None if doubt & {"nodes", "links"} else own)
            if message:
                yield ("nodes", name, "routes", n, field), message, ""


def _sysctl(given: Mapping[str, str | int], at: Path) -> Iterator[Fault]:
    for name, value in given.items():
        if not _SYSCTL.fullmatch(name):
            yield (*at, name), f"{name!r} is no parameter of a network namespace: these begin with net.", ""
        elif len(str(value)) > _VALUE:
            yield (*at, name), f"a value has at most {_VALUE} characters, and this has {len(str(value))}", ""


def _route(to: str, via: str, own: list[IPv4Interface | IPv6Interface] | None) -> tuple[str, str]:
    """Return the key and what is wrong with it; `own` are the addresses of the node, None when not known."""
    try:
        gateway = ip_address(via)
    except ValueError:
        return "via", f"{via!r} is no IP address"
    try:
        wanted = None if to == "default" else interface_of(to).network
    except ValueError:
        return "to", f"{to!r} is no network: write `default`, or one such as 192.0.2.0/24"
    if wanted is not None and str(wanted) not in (to, f"{to}/{wanted.prefixlen}"):
        return "to", f"{to} is no network: write {wanted}"
    if wanted is not None and wanted.version != gateway.version:
        return "to", f"{to} and {via} are of different families"
    if own is not None and gateway in [a.ip for a in own]:
        return "via", f"{via} is this node itself: `via` is the next router's address"
    if own is not None and not any(gateway in a.network for a in own):
        have = ", ".join(map(str, own)) or "it has no address"
        return "via", f"{via} is not on a network of this node ({have})"
    return "", ""


def _workloads(net: Network, nodes: Names, doubt: set[str]) -> Iterator[Fault]:
    for name, work in net.topology.workloads.items():
        at = ("workloads", name)
        if not NODE.fullmatch(name) or "." in name:
            what = "a letter or digit, then letters, digits, _ and -, at most 32 in all"
            yield at, f"{name!r} is no name of a workload: {what}", ""
        if not (kind := work.kind()):
            yield at, f"a workload needs exactly one of the keys {', '.join(Work.model_fields)}", ""
            continue
        workload = work.workload()
        for field, message in workload.faults():
            yield (*at, kind, field), message, ""
        unknown = [(field, node) for field, node in workload.ends() if node not in nodes]
        for field, node in unknown:
            yield (*at, kind, field), f"there is no node {node!r}", suggest(node, nodes) or _known(nodes)
        if work.multicast is not None:
            certain = not unknown and not doubt & {"nodes", "links"}
            yield from groups.faults(net, name, work.multicast, nodes, certain)
        elif not unknown and len(workload.ends()) == 2 and not doubt & {"nodes", "links"}:
            yield from _flow(net, work, (*at, kind))


def _flow(net: Network, work: Work, at: Path) -> Iterator[Fault]:
    workload = work.workload()
    (_, source), (_, target) = workload.ends()
    if source == target:
        yield (*at, "to"), f"{source} is both ends: a flow goes from one node to another", ""
        return
    ifname = getattr(workload, "to_interface", None)
    place = net.place(target)
    if ifname is not None and place.interface(ifname) is None:
        yield (*at, "to_interface"), place.lacks(ifname), suggest(ifname, [i.name for i in place.interfaces])
        return
    for field, node in (("from", source), ("to", target)):
        if not net.interfaces[node]:
            yield (*at, field), f"{node} has no interface: no link ends there", ""
            return
    wanted = {"ipv4": (4,), "ipv6": (6,), None: net.families}[getattr(workload, "family", None)]
    end = f"{target}:{ifname or ''}"
    if not any(net.address(end, v) and net.address(source, v) for v in wanted):
        lacking = target if not any(net.address(end, v) for v in wanted) else source
        hint = "it is a bridge, whose ports have none" if lacking in net.switches else ""
        yield (*at, "to"), f"{lacking} has no {' or '.join(f'IPv{v}' for v in wanted)} address", hint
        return
    if not reachable(net, source, target):
        why = "no path of links, bridges and routers joins them"
        cure = "a node between them needs `router: {}` or `bridge: {}`"
        yield (*at, "to"), f"{target} cannot be reached from {source}: {why}", cure


def reachable(net: Network, source: str, target: str) -> bool:
    """Say whether packets have a way between two nodes: shared segments, and routers between segments."""
    mine, theirs = ({net.joined[i.segment] for i in net.interfaces[n] if not i.port} for n in (source, target))
    return not mine.isdisjoint(theirs)


def _captures(net: Network, nodes: Names, doubt: set[str]) -> Iterator[Fault]:
    ends = name_set(f"{i.node}:{i.name}" for k in net.interfaces for i in net.interfaces[k])
    for n, capture in enumerate(net.topology.capture):
        at: Path = ("capture", n, "interfaces")
        if capture.filter is not None and (not capture.filter.isprintable() or len(capture.filter) > _FILTER):
            what = f"at most {_FILTER} printable characters in one line, as in `tcp port 80`"
            yield ("capture", n, "filter"), f"this is not a filter of packets (pcap-filter(7)): {what}", ""
        if len(capture.interfaces) > _PATTERN:
            yield (
                at,
                f"a pattern of interfaces has at most {_PATTERN} characters, and this has {len(capture.interfaces)}",
                "",
            )
            continue
        node, colon, _ = capture.interfaces.partition(":")
        if found := net.captured(capture.interfaces):
            for name in dict.fromkeys(i for _, i in found if _DEVICE.fullmatch(i)):
                yield at, f"dumpcap(1) takes {name!r} for something else than this interface: rename it", ""
            continue
        if not colon:
            cure = f"write node:interface, or {node or 'client'}:* for all of a node"
            yield at, f"{capture.interfaces!r} names no interface: {cure}", ""
        elif node not in nodes and not (WILD.search(node) and any(fnmatchcase(k, node) for k in nodes)):
            yield at, f"there is no node {node!r}", suggest(node, nodes) or _known(nodes)
        elif "links" not in doubt and not any(fnmatchcase(d, f"nodes.{node}") for d in doubt):
            hint = suggest(capture.interfaces, ends) or _known(ends)
            yield at, f"no interface matches {capture.interfaces!r}", hint


def _end(topology: Topology, doubt: set[str]) -> float | None:
    """Return when a run is over, None when that can't be known."""
    sound = all(w.kind() for w in topology.workloads.values())
    return topology.seconds() if sound and not doubt & {"workloads", "duration"} else None


def _events(topology: Topology, net: Network, nodes: Names, doubt: set[str]) -> Iterator[Fault]:
    end = _end(topology, doubt)
    for n, event in enumerate(topology.events):
        at: Path = ("events", n)
        if end == 0:
            yield at, "nothing runs: events need workloads, or a `duration`", ""
        elif end is not None and event.at >= end:
            message = f"at {event.at:g} s the run is over: it ends at {end:g} s"
            yield (*at, "at"), message, "state a longer `duration`"
        if (event.link is None) == (event.node is None):
            yield at, "an event happens either to a `link` or at a `node`", ""
        elif event.link is not None:
            yield from _link_event(topology, event, at, doubt)
        else:
            yield from _node_event(net, event, at, nodes, doubt)


def _link_event(topology: Topology, event: Event, at: Path, doubt: set[str]) -> Iterator[Fault]:
    assert event.link is not None
    n = link_index(topology, event.link)
    if n is None and "links" not in doubt:
        named, known = _links_known(topology)
        hint = suggest(event.link, known) or _known(named or known)
        yield (*at, "link"), f"there is no link {event.link!r}", hint
    if any(getattr(event, key) is not None for key in _AT_NODES):
        *most, last = (f"`{key}`" for key in _AT_NODES)
        yield at, f"{', '.join(most)} and {last} happen at a `node`", ""
    elif (event.set is None) == (event.down is None):
        example = "`set: {delay: 80ms}`, `down: true` or `down: false`"
        yield at, f"an event of a link needs exactly one of {example}", ""
    elif event.set is not None and not event.set.model_fields_set:
        yield (*at, "set"), "this sets nothing: state what changes, such as `delay: 80ms`", ""
    if event.set is not None:
        yield from _shaping(event.set, topology.links[n].mtu if n is not None else None, topology, (*at, "set"))


@lru_cache(maxsize=1)
def _links_known(topology: Topology) -> tuple[Names, Names]:
    """Return the names of links, and these and their ends."""
    named = [link.name for link in topology.links if link.name]
    return name_set(named), name_set([*named, *(end for link in topology.links for end in link.ends)])


def _node_event(net: Network, event: Event, at: Path, nodes: Names, doubt: set[str]) -> Iterator[Fault]:
    assert event.node is not None
    if event.node not in nodes:
        yield (*at, "node"), f"there is no node {event.node!r}", suggest(event.node, nodes) or _known(nodes)
        return
    if event.set is not None or event.down is not None:
        yield at, "`set` and `down` happen to a `link`", ""
    elif sum(getattr(event, key) is not None for key in _AT_NODES) != 1:
        keys = ", ".join(f"`{key}`" for key in _AT_NODES)
        yield at, f"an event at a node needs exactly one of {keys}", ""
    if not doubt & {"links", "nodes", f"nodes.{event.node}"}:
        yield from _wlan_event(net, event, event.node, at)
        yield from _address_event(net, event, event.node, at)
    known = (*net.topology.nodes[event.node].roles(), None)
    if event.restart not in known and f"nodes.{event.node}" not in doubt:
        what = str(event.restart)
        yield (*at, "restart"), f"{event.node} is not {called(what)}", f"it has no `{what}`"
    yield from _sysctl(event.sysctl or {}, (*at, "sysctl"))
    role = net.topology.nodes[event.node].mptcp
    if event.endpoint is None or doubt & {"links", f"nodes.{event.node}"}:
        return
    if role is None:
        yield (*at, "endpoint"), f"{event.node} is no MPTCP host", "give the node `mptcp: {}`"
        return
    changed = role.model_copy(update={"endpoints": (event.endpoint,)})
    for path, message in changed.faults(_during(net, event)):
        yield (*at, "endpoint", *path[2:]), message, ""


_AT_NODES = ("command", "sysctl", "endpoint", "mlo_link", "rejoin", "address", "restart")


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
                yield (*at, key), f"`{key}` is about an `mlo_link` of an access point: state which", ""
    roles = net.topology.nodes[node].roles().values()
    if event.rejoin is not None and not any(role.rejoin(net.place(node)) for role in roles):
        yield (*at, "rejoin"), f"{node} is not a station", ""
    elif event.rejoin is False:
        yield (*at, "rejoin"), "write `rejoin: true`, or leave the event out", ""
    if event.mlo_link is None:
        return
    bss = next((b for b in net.air if b.node == node), None)
    if bss is None:
        yield (*at, "mlo_link"), f"{node} is no access point", ""
        return
    freqs = dict(bss.freqs)
    if event.mlo_link not in freqs:
        yield (*at, "mlo_link"), f"{node} has no link {event.mlo_link}", _known(list(freqs))
    elif (event.remove is None) == (event.freq is None):
        yield (*at, "mlo_link"), "say what happens to the link: `remove: true`, `remove: false` or `freq: 5200`", ""
    elif event.remove is not None and not bss.mlo:
        yield (*at, "remove"), f"{node} is no AP MLD: its only channel can't be removed", ""
    elif event.freq is not None:
        old, new = channel(freqs[event.mlo_link]), channel(event.freq)
        if new is None or new.radar:
            why = "no centre of a 20 MHz channel" if new is None else "a channel with radar detection (DFS)"
            yield (*at, "freq"), f"{event.freq} MHz is {why}", ""
        elif old is not None and old.band != new.band:
            yield (*at, "freq"), f"link {event.mlo_link} is on {old.band}, and {event.freq} MHz is not", ""
        elif (other := next((n for n, f in _moved(net, event, freqs).items() if f == event.freq), None)) is not None:
            yield (*at, "freq"), f"{event.freq} MHz is the channel of link {other} then: each link has its own", ""


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
        yield (*where, "interface"), f"{change.interface} is a port of a bridge, which has no address", ""
    if change.remove is None and change.add is None:
        yield where, "state an address to `remove`, one to `add`, or both", ""
    if change.remove is not None and change.remove not in interface.addresses:
        before = [e.address.add for e in net.happenings[node] if e.address and e.at < event.at]
        if change.remove not in before:
            have = ", ".join(interface.addresses) or "none"
            yield (*where, "remove"), f"{change.remove} is no address of {node}:{change.interface} ({have})", ""
    if change.add is not None and (problem := _address(change.add)):
        yield (*where, "add"), problem, ""
    elif change.add is not None:
        other = net.owners.get(change.add.partition("/")[0])
        if other is not None and (other.node, other.name) != (node, change.interface):
            yield (*where, "add"), f"{change.add} is the address of {other.node}:{other.name} already", ""


def _checks(topology: Topology, net: Network, written: Written, doubt: set[str]) -> Iterator[Fault]:
    end = _end(topology, doubt)
    known = name_set((*written.workloads, *written.nodes))
    for n, check in enumerate(topology.checks):
        at: Path = ("checks", n)
        for field in ("metric", "divide_by"):
            metric = getattr(check, field)
            if metric is not None:
                yield from _metric(net, known, metric, (*at, field), doubt)
        bounds = [v for v in (check.min, check.max, check.equals) if v is not None]
        if not bounds and check.present is None:
            yield at, "a check needs at least one of the keys min, max, equals, present", ""
        if check.min is not None and check.max is not None and check.min > check.max:
            yield (*at, "min"), f"min {check.min:g} is above max {check.max:g}: nothing can pass", ""
        if check.present is not None and bounds:
            yield (*at, "present"), "min, max and equals need the metric anyway: leave `present` out, or them", ""
        if check.at is not None and end is not None and check.at > end:
            yield (*at, "at"), f"at {check.at:g} s the run is over: it ends at {end:g} s", ""


def _metric(net: Network, known: Names, metric: str, at: Path, doubt: set[str]) -> Iterator[Fault]:
    if len(metric) > _NAME:
        yield at, f"the name of a metric has at most {_NAME} characters, and this has {len(metric)}", ""
        return
    if not _METRIC.fullmatch(metric):
        example = "bulk.goodput_mbps or client.eth0.tx_mbps"
        yield at, f"{metric!r} is no metric: write workload.metric or node.interface.counter, such as {example}", ""
        return
    # A node's name may have dots, so the longest name that fits is the owner.
    parts = metric.split(".")
    heads = [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
    owner = next((h for h in heads if h in known or h == _MACHINE), "")
    if not owner:
        head = parts[0]
        yield at, f"no workload and no node is called {head!r}", suggest(head, known) or _known(known)
        return
    rest = metric.removeprefix(f"{owner}.")
    work = net.topology.workloads.get(owner)
    if work is not None and work.kind():
        names = work.workload().metrics()
        if rest not in names:
            yield at, f"{work.kind()} has no metric {rest!r}", suggest(rest, names) or _known(names)
    elif owner == _MACHINE and rest not in (names := table.names("machine")):
        yield at, f"the machine has no metric {rest!r}", suggest(rest, names) or _known(names)
    elif owner in net.topology.nodes and not doubt & {"links", f"nodes.{owner}"}:
        yield from _node_metric(net, owner, rest, at)


def _node_metric(net: Network, node: str, rest: str, at: Path) -> Iterator[Fault]:
    owner, _, figure = rest.partition(".")
    role = figured(owner) if table.begins(owner) else ""
    known = table.names(owner if role else "interface")
    if role:
        if role not in net.topology.nodes[node].roles():
            yield at, f"{node} is not {called(role)}", f"give the node `{role}: {{}}`"
            return
        if not table.by_interface(owner):
            if figure not in known and table.COUNTER not in known:  # which counters there are, the kernel knows
                yield at, f"{role} has no metric {figure!r}", suggest(figure, known) or _known(known)
            return
        rest = figure
    ends = net.devices_of.get(node, ())
    ifname = max((i for i in ends if rest.startswith(f"{i}.")), key=len, default="")
    if not ifname:
        head = rest.partition(".")[0]
        yield at, f"{node} has no interface {head!r}", suggest(head, ends) or _known(ends)
        return
    counter = rest.removeprefix(f"{ifname}.")
    if not role and any(i.kind == "wlan" and i.name == ifname for i in net.interfaces[node]):
        links = [f"link{n}.{w}" for n in net.link_ids(node)[ifname].values() for w in table.names("mlo_link")]
        known = (*known, *table.names("wlan"), *links)
    if counter not in known:
        yield at, f"there is no counter {counter!r}", suggest(counter, known) or _known(known)


def _known(names: Collection[object]) -> str:
    found = [str(n) for n in islice(names, 8)]
    return f"there are: {', '.join(found)}{', ...' if len(names) > 8 else ''}" if found else "there are none"
