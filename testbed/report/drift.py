"""What of the links was not as the file has it, when the run began and when it ended (pure).

Nobody knows beforehand what `commands` do, or a program that runs: the sampler reads it from the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from testbed.language.topology import Topology
from testbed.metrics.records import Planned, Sample

_PLACES = 3  # interfaces that are named


def drift(topology: Topology, planned: Planned, samples: Mapping[str, Sequence[Sample]]) -> Iterator[tuple[str, str]]:
    """Yield (figures, what was seen); `samples` are by node those that have the whole state."""
    shaped = {end: bool(shape.kinds()) for link in topology.links for end, shape in link.directions()}
    changed = _changed(topology)
    found: dict[str, list[str]] = {}
    for end, is_shaped in shaped.items():
        node, _, ifname = end.partition(":")
        rows = [row for row in samples.get(node, ()) if row.up is not None]
        hosts = planned.interfaces.get(node, {}).get(ifname, [])
        if not rows:
            continue
        began = set(_differs(rows[0], ifname, hosts, is_shaped))
        for why in sorted(began):
            found.setdefault(f"when the run began, {why}", []).append(f"{node}.{ifname}")
        if end in changed or node in changed:
            continue
        for why in sorted(set(_differs(rows[-1], ifname, hosts, is_shaped)) - began):
            found.setdefault(f"when the run ended, {why}, and no event of the file did that", []).append(
                f"{node}.{ifname}"
            )
    for text, places in found.items():
        rest = len(places) - _PLACES
        more = f" and {rest} more interface{'s' if rest > 1 else ''}" if rest > 0 else ""
        yield f"flows through {', '.join(places[:_PLACES])}{more}", text


def _differs(row: Sample, ifname: str, hosts: Sequence[str], is_shaped: bool) -> Iterator[str]:
    """Yield what of an interface is not as the file has it."""
    if ifname not in row.interfaces:
        yield "it was not there"
        return
    if row.up is not None and ifname not in row.up:
        yield "it was down"
        return  # a kernel removes IPv6 addresses then
    if not set(hosts) <= set(row.addresses.get(ifname, ())):
        yield "it lacked an address of the plan"
    kinds = [q.kind for q in row.qdiscs if q.dev == ifname]
    if is_shaped and not kinds:
        yield "it had no shaping, although the file asks for one"
    elif kinds and not is_shaped:
        yield f"it had a queue discipline ({', '.join(dict.fromkeys(kinds))}) that the file does not ask for"


def _changed(topology: Topology) -> set[str]:
    """Return the ends of links that events change, and the nodes where events run commands or change addresses."""
    names = {e.link for e in topology.events if e.link is not None}
    links = [link for link in topology.links if link.name in names or names & set(link.ends)]
    nodes = {e.node for e in topology.events if e.node is not None and (e.command or e.address or e.sysctl)}
    return {*(end for link in links for end in link.ends), *nodes}
