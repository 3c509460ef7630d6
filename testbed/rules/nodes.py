"""What is wrong with nodes: their roles, kernel parameters and routes (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address

from testbed.language.document import Fault, Path
from testbed.nodes import service
from testbed.nodes.node import Route
from testbed.nodes.place import Place, misnamed
from testbed.nodes.role import UP
from testbed.plan.network import Network
from testbed.rules.fault import end_of_run
from testbed.units import interface_of

_SYSCTL = re.compile(r"net(\.[A-Za-z0-9_@+-]+(/[A-Za-z0-9_@+-]+)*)+")  # a slash is a dot in a device's name
_VALUE = 4096  # characters of a kernel parameter: no more is read back


def faults(net: Network, doubt: set[str]) -> Iterator[Fault]:
    """Yield (path, sentence, hint) for each fault."""
    end = end_of_run(net.topology, doubt)
    media = {own.medium for node in net.topology.nodes.values() for _, own in node.brought() if own.makes}
    for name, node in net.topology.nodes.items():
        place = net.place(name)
        for field, role in node.roles().items():
            # A role of this node that is faulty may be what brings a port of its bridge.
            unsure = "links" in doubt or (role.switch() is not None and f"nodes.{name}" in doubt)
            # A faulty node may be what makes the medium that this one joins.
            joins = {own.medium for own in role.interfaces(False) if own.medium and not own.makes}
            unsure = unsure or (not joins <= media and any(d.startswith("nodes.") for d in doubt))
            for path, message in role.faults(place) if not unsure else ():
                where = path[1:] if path[:1] == (UP,) else (field, *path)
                yield ("nodes", name, *where), message, ""
            for path, at in role.times():
                if end is not None and at > end:
                    what = f"the run ends at {end:g} s, and this is at {at:g} s"
                    yield ("nodes", name, field, *path), what, "give a longer `duration`" if end else ""
        for own in node.interfaces:
            if problem := misnamed(own):
                yield ("nodes", name, "interfaces", own), problem, ""
            elif len(net.named.get((name, own), ())) > 1:
                what = f"{name} already has an interface {own}, which a link or a role makes"
                yield ("nodes", name, "interfaces", own), what, "leave it out here"
        if node.interfaces and not node.commands:
            what = "nothing makes these interfaces: `interfaces` are those that the node's `commands` make"
            yield ("nodes", name, "interfaces"), what, ""
        for path, message in service.faults(node.services):
            yield ("nodes", name, "services", *path), message, ""
        yield from sysctl(node.sysctl, ("nodes", name, "sysctl"))
        yield from routes(place, node.routes or (), bool(doubt & {"nodes", "links"}))


def sysctl(given: Mapping[str, str | int], at: Path) -> Iterator[Fault]:
    """Yield what is wrong with kernel parameters, of a node or of an event."""
    for name, value in given.items():
        if not _SYSCTL.fullmatch(name):
            yield (*at, name), f"{name!r} is not a parameter of a network namespace: their names begin with net.", ""
        elif len(str(value)) > _VALUE:
            yield (*at, name), f"a value has at most {_VALUE} characters, and this has {len(str(value))}", ""


def routes(place: Place, stated: Sequence[Route], vague: bool) -> Iterator[Fault]:
    """Yield what is wrong with the routes of a node; `vague` says that its addresses are not known."""
    known: dict[tuple[str, str, int | None], int] = {}
    for n, route in enumerate(stated):
        at: Path = ("nodes", place.node, "routes", n)
        if not route.via and route.dev is None:
            yield at, "a route needs a next router, such as `via: 10.0.1.2`, or the interface `dev`", ""
        if route.dev is not None and place.interface(route.dev) is None and not vague:
            yield (*at, "dev"), place.lacks(route.dev), ""
            continue
        mine = [i for i in place.interfaces if route.dev in (None, i.name)]
        own = [interface_of(a) for i in mine for a in i.addresses]
        if not route.via and route.dev is not None and (problem := _network(route.to)):
            yield (*at, "to"), problem, ""
        for k, hop in enumerate(route.via):
            linked = route.dev is not None and hop.lower().startswith("fe80:")
            field, message = _route(route.to, hop, None if vague or linked else own)
            if message:
                yield (*at, *((field, k) if field == "via" else (field,))), message, ""
            elif (other := known.setdefault((route.to, hop, route.metric), n)) != n or hop in route.via[:k]:
                first = f"item {other + 1} of `routes` has it as well" if other != n else "it is named twice"
                yield (*at, "via", k), f"{route.to} by {hop}: {first}", "each next hop counts once"


def _network(to: str) -> str:
    """Return what is wrong with a destination, "" if it is valid."""
    try:
        wanted = None if to == "default" else interface_of(to).network
    except ValueError:
        return f"{to!r} is not a network: write `default`, or a network such as 192.0.2.0/24"
    if wanted is not None and str(wanted) not in (to, f"{to}/{wanted.prefixlen}"):
        return f"{to} is not the address of a network: write {wanted}"
    return ""


def _route(to: str, via: str, own: list[IPv4Interface | IPv6Interface] | None) -> tuple[str, str]:
    """Return the key and what is wrong with it; `own` are the addresses of the node, None when not known."""
    try:
        gateway = ip_address(via)
    except ValueError:
        return "via", f"{via!r} is not an IP address"
    if problem := _network(to):
        return "to", problem
    wanted = None if to == "default" else interface_of(to).network
    if wanted is not None and wanted.version != gateway.version:
        return "to", f"{to} and {via} are of different families"
    if own is not None and gateway in [a.ip for a in own]:
        return "via", f"{via} is this node itself: `via` is the next router's address"
    if own is not None and not any(gateway in a.network for a in own):
        have = ", ".join(map(str, own)) or "it has no address"
        return "via", f"{via} is not on a network of this node ({have})"
    return "", ""
