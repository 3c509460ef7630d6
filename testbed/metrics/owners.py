"""Which interface has an address at a time of the run: as the kernel said, else as planned (pure)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from msgspec import Struct

from testbed.metrics.records import Sample

Planned = Mapping[str, Mapping[str, Sequence[str]]]  # by node and interface: addresses


class Owners(Struct, frozen=True):
    """By address, when it came to which interface: (time, node, interface) in the order of time."""

    gained: dict[str, list[tuple[float, str, str]]]

    def at(self, host: str, t: float, node: str = "") -> tuple[str, str]:
        """Return (node, interface) that got an address last, of one node if that is given; ("", "") if none ever did.

        An address that is gone stays with its last interface: its connections may outlive it.
        """
        found = [g for g in self.gained.get(host, ()) if not node or g[1] == node]
        if not found:
            return "", ""
        _, owner, ifname = found[max(0, bisect_right(found, t, key=lambda g: g[0]) - 1)]
        return owner, ifname


def owners(planned: Planned, samples: Mapping[str, Sequence[Sample]]) -> Owners:
    """Return the owners of a run's addresses, from the plan and from the samples of nodes that have them."""
    gained: dict[str, list[tuple[float, str, str]]] = {}
    for node, interfaces in planned.items():
        for ifname, hosts in interfaces.items():
            for host in hosts:
                gained.setdefault(host, []).append((0.0, node, ifname))
    now = {(n, host, i) for n, interfaces in planned.items() for i, hosts in interfaces.items() for host in hosts}
    for node, rows in samples.items():
        have = {key for key in now if key[0] == node}
        told: dict[str, list[str]] | None = None
        for row in rows:
            if not row.addresses or row.addresses == told:
                continue
            told = row.addresses
            seen = {(node, host, ifname) for ifname, hosts in told.items() for host in hosts}
            for _, host, ifname in sorted(seen - have):
                gained.setdefault(host, []).append((row.t, node, ifname))
            have = seen
    for rows_of in gained.values():
        rows_of.sort()
    return Owners(gained)
