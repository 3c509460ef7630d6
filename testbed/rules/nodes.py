"""What is wrong with nodes: their roles, kernel parameters and routes (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Interface, IPv6Interface, ip_address

from testbed.language.document import Fault, Path
from testbed.plan.network import Network
from testbed.units import interface_of

_SYSCTL = re.compile(r"net(\.[A-Za-z0-9_@+-]+(/[A-Za-z0-9_@+-]+)*)+")  # a slash is a dot in a device's name
_VALUE = 4096  # characters of a kernel parameter: no more is read back


def faults(net: Network, doubt: set[str]) -> Iterator[Fault]:
    """Yield (path, sentence, hint) for each fault."""
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
                yield ("nodes", name, field, *path), message, ""
        yield from sysctl(node.sysctl, ("nodes", name, "sysctl"))
        own = [interface_of(a) for i in place.interfaces for a in i.addresses] if node.routes else []
        for n, route in enumerate(node.routes):
            field, message = _route(route.to, route.via, None if doubt & {"nodes", "links"} else own)
            if message:
                yield ("nodes", name, "routes", n, field), message, ""


def sysctl(given: Mapping[str, str | int], at: Path) -> Iterator[Fault]:
    """Yield what is wrong with kernel parameters, of a node or of an event."""
    for name, value in given.items():
        if not _SYSCTL.fullmatch(name):
            yield (*at, name), f"{name!r} is not a parameter of a network namespace: their names begin with net.", ""
        elif len(str(value)) > _VALUE:
            yield (*at, name), f"a value has at most {_VALUE} characters, and this has {len(str(value))}", ""


def _route(to: str, via: str, own: list[IPv4Interface | IPv6Interface] | None) -> tuple[str, str]:
    """Return the key and what is wrong with it; `own` are the addresses of the node, None when not known."""
    try:
        gateway = ip_address(via)
    except ValueError:
        return "via", f"{via!r} is not an IP address"
    try:
        wanted = None if to == "default" else interface_of(to).network
    except ValueError:
        return "to", f"{to!r} is not a network: write `default`, or a network such as 192.0.2.0/24"
    if wanted is not None and str(wanted) not in (to, f"{to}/{wanted.prefixlen}"):
        return "to", f"{to} is not the address of a network: write {wanted}"
    if wanted is not None and wanted.version != gateway.version:
        return "to", f"{to} and {via} are of different families"
    if own is not None and gateway in [a.ip for a in own]:
        return "via", f"{via} is this node itself: `via` is the next router's address"
    if own is not None and not any(gateway in a.network for a in own):
        have = ", ".join(map(str, own)) or "it has no address"
        return "via", f"{via} is not on a network of this node ({have})"
    return "", ""
