"""What will work and not do what its words say: the warnings of a file, each with a name that silences it (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from testbed.language.document import Fault, Path
from testbed.language.explain import suggest
from testbed.language.sound import Built
from testbed.language.topology import Topology
from testbed.nodes.place import Place
from testbed.plan.assemble import network
from testbed.plan.network import Network
from testbed.rules import flows, misread
from testbed.rules.fault import there_are
from testbed.rules.likeness import reshaped

Warned = tuple[str, Path, str, str]  # the name of the warning, and a fault


class Kind(Struct, frozen=True):
    """A warning: what it says for the docs, and the figures that it makes doubtful ("" for none)."""

    means: str
    figures: str = ""


WARNINGS: Mapping[str, Kind] = {
    "rate-in-bytes": Kind(
        "a rate has a unit in bytes per second, such as `mbps` (tc(8)), which many people read as bits",
        "every rate that this one limits or sends",
    ),
    "rate-below-a-frame": Kind(
        "a rate is so low that one full frame takes more than a second, such as `100bit`",
        "every flow through that link",
    ),
    "snooping-floods": Kind(
        "a bridge has `mcast_snooping: true`, and nothing in the lab sends the queries that it learns from",
        "packets at ports that nobody joined",
    ),
    "jitter-reorders": Kind(
        "a link with `jitter` reorders the packets of TCP flows",
        "retransmits and rates of TCP flows",
    ),
    "queue-below-a-frame": Kind(
        "a queue has a limit below the length of one full frame",
        "every flow of full packets",
    ),
    "mptcp-role": Kind(
        "a flow has `protocol: mptcp`, and one of its ends is not an MPTCP host: what it says of paths is missing",
        "figures of paths",
    ),
    "mptcp-one-path": Kind(
        "an MPTCP connection stays on one path, although its hosts have several: for want of endpoints on the side "
        "that opens it, or because of limits",
        "rates of MPTCP flows",
    ),
    "mptcp-off": Kind(
        "a flow is to speak MPTCP, and a kernel parameter turns MPTCP off at one of its ends", "that flow"
    ),
    "mptcp-no-manager": Kind(
        "a kernel parameter leaves the paths of an MPTCP flow to a program in user space, and none is started",
        "rates of MPTCP flows",
    ),
    "mptcp-rp-filter": Kind(
        "an MPTCP host with several interfaces has a strict reverse path filter", "rates of MPTCP flows"
    ),
    "mptcp-no-source-routes": Kind(
        "`routing: none`, and nothing makes the subflows of an MPTCP host leave by the interfaces of their addresses",
        "figures of paths",
    ),
    "mptcp-flags": Kind("an MPTCP endpoint has only flags that do nothing by themselves"),
    "mptcp-checksum": Kind(
        "the two ends of an MPTCP flow state different `checksum_enabled`: it is on in both directions"
    ),
    "mptcp-no-mesh": Kind(
        "a `fullmesh` endpoint joins one address only, as the server announces no other", "rates of MPTCP flows"
    ),
    "mptcp-foreign-address": Kind(
        "an MPTCP endpoint has an address that its node does not have: the kernel announces it, and can't open a "
        "subflow from it",
    ),
    "mptcp-unreachable": Kind(
        "the second subflow of an MPTCP connection joins an address to which its interface does not lead",
        "rates of MPTCP flows",
    ),
}


_OF_FLOWS = (
    "mptcp-role",
    "mptcp-one-path",
    "mptcp-unreachable",
    "mptcp-off",
    "mptcp-no-manager",
    "mptcp-checksum",
    "mptcp-no-mesh",
)


def warnings(topology: Topology, data: Mapping[str, Any], like: Built | None = None) -> Iterator[Warned]:
    """Yield every warning of a topology without faults that the file does not silence; `data` is what it states.

    `like` is another case of the file, whose warnings are known: what both have in common is not judged again.
    """
    before = like.topology if like is not None else None
    of_roles = [] if before is not None and reshaped(topology, before) is not None else _of_roles(topology)
    kinds: tuple[tuple[str, Iterable[Fault]], ...] = (
        ("rate-in-bytes", misread.rates_in_bytes(data, like.data if like is not None else {})),
        ("rate-below-a-frame", misread.crawling(topology, before)),
        ("snooping-floods", misread.floods(topology, before)),
        ("jitter-reorders", misread.reordered(topology, before)),
        ("queue-below-a-frame", misread.shallow(topology, before)),
        *((name, (fault,)) for name, fault in of_roles),
        *((name, flows.faults(topology, name)) for name in _OF_FLOWS),
    )
    for name, found in kinds:
        if name not in topology.silence:
            yield from ((name, *fault) for fault in found)


def _of_roles(topology: Topology) -> list[tuple[str, Fault]]:
    """Return the warnings of each role at its place, with the addresses that its node has at any time of a run."""
    net = network(topology)
    found: list[tuple[str, Fault]] = []
    for name, node in topology.nodes.items():
        for field, role in node.roles().items():
            for kind, path, why, hint in role.warns(_ever(net, name)):
                found.append((kind, (("nodes", name, field, *path), why, hint)))
    return found


def _ever(net: Network, name: str) -> Place:
    place = net.place(name)
    new = [e.address for e in net.happenings[name] if e.address is not None and e.address.add is not None]
    if not new:
        return place
    more = {i.name: tuple(a.add for a in new if a.add and a.interface == i.name) for i in place.interfaces}
    return replace(
        place, interfaces=tuple(replace(i, addresses=(*i.addresses, *more[i.name])) for i in place.interfaces)
    )


def faults(topology: Topology) -> Iterator[Fault]:
    """Yield what is wrong with the warnings that a file silences."""
    for name, reason in topology.silence.items():
        if name not in WARNINGS:
            yield ("silence", name), f"there is no warning {name!r}", suggest(name, WARNINGS) or there_are(WARNINGS)
        elif not reason.strip():
            cure = "write why it does not matter here"
            yield ("silence", name), f"the reason for silencing {name!r} is empty: {cure}", ""
