"""What no single value shows: names that must exist, addresses that must fit, flows that must have a way (pure).

Every fault is (path in the file, sentence, hint). Links without two good ends are left out of the planned network,
so that the rest of the file is judged all the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from testbed.language.document import Fault
from testbed.language.explain import name_set
from testbed.language.topology import Link, Topology
from testbed.nodes.node import Node
from testbed.plan.addresses import NoRoom
from testbed.plan.assemble import network
from testbed.rules import (
    addresses,
    amt,
    captures,
    checks,
    events,
    links,
    multicast,
    names,
    nodes,
    requires,
    segments,
    warnings,
    workloads,
)
from testbed.rules.addresses import wrong
from testbed.rules.fault import Written
from testbed.rules.likeness import reshaped
from testbed.rules.links import shaping
from testbed.spec import Spec


def faults(topology: Topology, written: Written, like: Topology | None = None) -> Iterator[Fault]:
    """Yield everything that does not fit together; parts shared with `like`, which has no faults, are not checked.

    A fault in `written.doubt` hides those that it may cause: for a mistyped end of a link, report that typo and not
    the missing interface.
    """
    if like is not None and (links_of := reshaped(topology, like)) is not None:
        for n in links_of:
            yield from shaping(topology.links[n], topology.links[n].mtu, topology, ("links", n))
        return
    known, doubt = name_set(written.nodes), set(written.doubt)
    yield from names.faults(topology, known)
    yield from warnings.faults(topology)
    yield from requires.faults(topology)
    found = list(links.faults(topology, known))
    yield from found
    no_end = {path[1] for path, _, _ in found if path[2:3] == ("ends",)}
    if no_end:
        doubt.add("links")
    index = [n for n in range(len(topology.links)) if n not in no_end]
    given = tuple(topology.links[n] for n in index)
    try:
        net = network(_sound_topology(topology, given))
    except NoRoom as e:
        at = ("links", index[int(e.at[1])], "ends") if e.at[0] == "links" else e.at
        yield at, str(e), "a shorter prefix length leaves room for more addresses"
        return
    for path, message, hint in addresses.faults(net, topology, given):
        yield ("links", index[int(path[1])], *path[2:]) if path[0] == "links" else path, message, hint
    for path, message, hint in names.shared((i for found in net.interfaces.values() for i in found), known):
        yield ("links", index[int(path[1])], *path[2:]) if path[0] == "links" else path, message, hint
    for path, message, hint in segments.faults(net) if not doubt & {"links", "nodes", "events"} else ():
        yield ("links", index[int(path[1])], *path[2:]) if path[0] == "links" else path, message, hint
    yield from nodes.faults(net, doubt)
    yield from amt.faults(net) if not doubt & {"links", "nodes"} else ()
    yield from workloads.faults(net, known, doubt)
    yield from multicast.crowded(net) if not doubt & {"links", "nodes", "workloads"} else ()
    yield from captures.faults(net, known, doubt)
    yield from events.faults(topology, net, known, doubt)
    yield from checks.faults(topology, net, written, doubt)
    if not 0.02 <= topology.samples.every <= 60:
        yield ("samples", "every"), "`every` must be between 20ms and 60s", ""


def _sound_topology(topology: Topology, links: tuple[Link, ...]) -> Topology:
    """Return the topology with these links and without invalid addresses; itself if nothing changes."""
    sound = tuple(map(_sound, links))
    nodes = {n: _sound_node(x) for n, x in topology.nodes.items()}
    if sound == topology.links and nodes == topology.nodes:
        return topology  # whose network the plan asks for again
    return topology.model_copy(update={"links": sound, "nodes": nodes})


def _sound(link: Link) -> Link:
    """Return the link without invalid addresses."""
    if not any(wrong(a) for e in range(2) for a in link.stated(e) or ()):
        return link
    stated = [[a for a in link.stated(e) or () if not wrong(a)] for e in range(2)]
    return link.model_copy(update={"addresses": stated})


def _sound_node(node: Node) -> Node:
    """Return the node with roles whose interfaces have no invalid addresses."""
    update: dict[str, object] = {}
    for field, role in node.roles().items():
        given: tuple[str, ...] = getattr(role, "addresses", None) or ()
        if isinstance(role, Spec) and any(map(wrong, given)):
            good = tuple(a for a in given if not wrong(a))
            update[field] = role.model_copy(update={"addresses": good})
    return node.model_copy(update=update) if update else node
