"""What is wrong with addresses, each by itself and with one another (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from msgspec import Struct

from testbed.language.document import Fault, Path
from testbed.language.topology import Link, Topology
from testbed.plan.addresses import Net
from testbed.plan.assemble import ends
from testbed.plan.network import Network
from testbed.units import interface_of


@lru_cache(maxsize=8192)
def wrong(text: str) -> str:
    """Return what is wrong with an address by itself, "" if it is valid."""
    if "/" not in text:
        return f"{text!r} has no prefix length: write it as 192.0.2.1/24"
    try:
        parsed = interface_of(text)
    except ValueError:
        return f"{text!r} is not an IP address"
    if "%" in text:
        return f"{text!r} names an interface: remove that part, because the position in `addresses` says which it is"
    if parsed.ip.is_multicast or parsed.ip.is_unspecified or parsed.ip.is_loopback:
        return f"{parsed.ip} can't be the address of a host: it is a multicast, unspecified or loopback address"
    short = parsed.network.prefixlen >= parsed.max_prefixlen - 1
    if not short and parsed.ip == parsed.network.network_address:
        return f"{parsed.ip} is the address of the network {parsed.network} itself: hosts have the addresses after it"
    if not short and parsed.version == 4 and parsed.ip == parsed.network.broadcast_address:
        return f"{parsed.ip} is the broadcast address of {parsed.network}: hosts have the addresses before it"
    return ""


def faults(net: Network, topology: Topology, links: Sequence[Link]) -> Iterator[Fault]:
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
            where = ("links", end.at[1], "addresses", end.at[3], k) if on_link else (*end.at, "addresses", k)
            if problem := wrong(address):
                if not on_link:
                    yield where, problem, ""
                continue
            parsed = interface_of(address)
            mine = Stated(parsed.network, text, end.medium, where[: 3 if on_link else 4])
            known = stated.setdefault((interface.segment, parsed.version), [])
            if interface.port:
                yield (
                    where,
                    f"{text} is a port of a bridge, and a port has no address: give the address to the other end",
                    "",
                )
            elif parsed.version not in net.families:
                yield (
                    where,
                    f"{parsed.ip} is an IPv{parsed.version} address, and `families` does not include that version",
                    "",
                )
            elif (other := owners.setdefault(str(parsed.ip), text)) is not text:
                yield where, f"{parsed.ip} is already the address of {other}", ""
            elif known and parsed.version not in firsts and known[0].network != mine.network:
                joined = f"{known[0].end}, to which a link or bridge joins it, is on {known[0].network}"
                yield where, f"{text} is on {mine.network}, but {joined}", ""
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
