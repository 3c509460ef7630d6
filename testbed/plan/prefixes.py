"""The networks of a lab as numbers, and the fewest prefixes that give each its next hop (pure)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import groupby

from msgspec import Struct

from testbed.plan.network import Network

_BITS = {4: 32, 6: 128}
NONE = -1  # in place of a hop's number: a destination of the default route


class Known(Struct, frozen=True):
    """The networks of a family as numbers, in the order of addresses; `segments` has None where no route leads.

    `via` is the address of each router on each segment.
    """

    version: int
    via: dict[tuple[int, str], str]
    bases: tuple[int, ...]
    lengths: tuple[int, ...]
    segments: tuple[int | None, ...]


def known(net: Network, version: int) -> Known:
    """Return the networks of a family, and the hosts outside of them that events add, without overlaps."""
    found: dict[tuple[int, int], int | None] = {}
    for segment, members in net.segments.items():
        for i in members:
            for n, address in enumerate(a for a in i.addresses if (":" in a) == (version == 6)):
                # Routes lead to the first network of an interface, which is that of its segment.
                found.setdefault(_network(address), None if n else segment)
    order = sorted(found)
    for added in (e.address.add for e in net.topology.events if e.address is not None and e.address.add):
        if (":" in added) == (version == 6):
            host = _network(f"{added.partition('/')[0]}/{_BITS[version]}")
            at = bisect_right(order, host)
            if not at or host[0] >> (shift := _BITS[version] - order[at - 1][1]) != order[at - 1][0] >> shift:
                found[host] = None
    order = sorted(found)
    every = [i for members in net.segments.values() for i in members if net.router(i.node)]
    via = {(i.segment, i.node): i.host(version) for i in reversed(every) if i.host(version)}
    segments = tuple(found[key] for key in order)
    return Known(version, via, tuple(base for base, _ in order), tuple(length for _, length in order), segments)


def _network(address: str) -> tuple[int, int]:
    """Return the base and length of an address's network as numbers; ipaddress would take ten times as long."""
    host, _, length = address.partition("/")
    value, shift = (int(IPv6Address(host)), 128) if ":" in host else (int(IPv4Address(host)), 32)
    shift -= int(length)
    return value >> shift << shift, int(length)


def merged(nets: Known, taken: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Yield the fewest prefixes, none within another, that give every network with a hop that hop.

    `taken` is the number of the hop of each network.
    """
    ends: list[int] = []  # of the run of equal hops that each network is in
    for _, run in groupby(taken):
        count = len(list(run))
        ends += [len(ends) + count] * count
    bases = nets.bases
    parts = [(0, len(bases))] if bases else []
    while parts:
        low, high = parts.pop()
        if ends[low] < high:
            shift = (bases[low] ^ bases[high - 1]).bit_length() - 1
            middle = bisect_left(bases, bases[high - 1] >> shift << shift, low, high)
            parts += ((middle, high), (low, middle))
        elif taken[low] != NONE:
            differ = (bases[low] ^ bases[high - 1]).bit_length()
            length = _BITS[nets.version] - differ if differ else nets.lengths[low]
            yield _text(bases[low] >> differ << differ, length, nets.version), taken[low]


@lru_cache(maxsize=1 << 16)
def _text(base: int, length: int, version: int) -> str:
    return str((IPv4Network if version == 4 else IPv6Network)((base, length)))
