"""Static multicast routes: smcrouted(8) adds them to the kernel, whose tables show when they are in effect.

Sources: smcroute.conf(5); net/ipv4/ipmr.c and net/ipv6/ip6mr.c (ipmr_mfc_seq_show, ipmr_vif_seq_show and their like),
which print /proc/net/ip_mr_cache, ip_mr_vif, ip6_mr_cache and ip6_mr_vif.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from msgspec import Struct

from testbed.linux.wire import decoder
from testbed.steps import Probe, Spawn, Step, Wait, Write

MOST = 32  # include/uapi/linux/mroute.h: MAXVIFS, and mroute6.h: MAXMIFS
_WORD = re.compile(r"[A-Za-z0-9_.-]+")


class Entry(Struct, frozen=True):
    """A route: forward packets from `source` to `group` that arrive on `iif` to all of `oifs`."""

    source: str
    group: str
    iif: str
    oifs: tuple[str, ...]

    @property
    def version(self) -> int:
        """Return the IP version."""
        return 6 if ":" in self.group else 4

    def __str__(self) -> str:
        return f"({self.source}, {self.group}) from {self.iif} to {' '.join(self.oifs)}"


class Forwarding(Probe, frozen=True):
    """The kernel has these multicast interfaces for each IP version, and these routes."""

    interfaces: tuple[str, ...]
    entries: tuple[Entry, ...]
    versions: tuple[int, ...]

    def __str__(self) -> str:
        routes = "; ".join(map(str, self.entries)) or "nothing yet"
        return f"multicast interfaces {' '.join(self.interfaces)} forward {routes}"


def steps(
    node: str,
    interfaces: tuple[str, ...],
    entries: tuple[Entry, ...],
    versions: tuple[int, ...],
    joined: tuple[str, ...] = (),
) -> Iterator[Step]:
    """Yield a node's daemon, which lives as long as the lab, and the wait until the kernel has its routes.

    On the interfaces `joined` the daemon itself joins the groups that arrive there. Its identity (-i) names its PID
    file and its socket below the lab's own /run.
    """
    path = f"{node}/smcroute.conf"
    yield Write(path, configuration(interfaces, entries, joined), node)
    # -n: in the foreground, log on stderr; -N: no interfaces but those of the file
    yield Spawn(node, "smcrouted", ("smcrouted", "-n", "-N", "-i", f"smcroute-{node}", "-f", path))
    yield Wait(node, Forwarding(interfaces, entries, versions), process="smcrouted")


def configuration(interfaces: Iterable[str], entries: Iterable[Entry], joined: Iterable[str] = ()) -> str:
    """Return the daemon's configuration: interfaces first, then the routes that name them."""
    rows = [f"phyint {name} enable" for name in interfaces]
    own = frozenset(joined)
    rows += [f"mgroup from {e.iif} source {e.source} group {e.group}" for e in entries if e.iif in own]
    rows += [f"mroute from {e.iif} source {e.source} group {e.group} to {' '.join(e.oifs)}" for e in entries]
    return "".join(f"{row}\n" for row in rows)


def unfit(name: str) -> bool:
    """Return whether an interface's name would be a pattern (`eth+`) or several words in the configuration."""
    return not _WORD.fullmatch(name)


@decoder
def parse_interfaces(table: str) -> dict[int, str]:
    """Parse ip_mr_vif or ip6_mr_vif: multicast interfaces by number."""
    rows = [row.split() for row in table.splitlines()[1:]]
    return {int(row[0]): row[1] for row in rows if len(row) > 1}


@decoder
def parse_cache(table: str, interfaces: dict[int, str]) -> tuple[Entry, ...]:
    """Parse the routes of ip_mr_cache or ip6_mr_cache, without unresolved ones, which lack an incoming interface."""
    routes = []
    for row in (line.split() for line in table.splitlines()[1:]):
        # Group Origin Iif Pkts Bytes Wrong Oifs; each of the Oifs is `number:ttl`
        if len(row) < 6 or int(row[2]) not in interfaces:
            continue
        oifs = (interfaces.get(int(word.partition(":")[0]), "?") for word in row[6:])
        routes.append(Entry(_address(row[1]), _address(row[0]), interfaces[int(row[2])], tuple(oifs)))
    return tuple(routes)


def _address(text: str) -> str:
    """Parse an address; an IPv4 address in network order is printed as a number in host order."""
    if ":" in text:
        return str(ip_address(text))
    return str(ip_address(int(text, 16).to_bytes(4, sys.byteorder)))


def lacking(wanted: Forwarding, seen: Iterable[tuple[int, dict[int, str], tuple[Entry, ...]]]) -> str:
    """Return what is missing, "" if nothing is; `seen` has version, interfaces and routes."""
    have: set[tuple[str, str, str, frozenset[str]]] = set()
    for version, interfaces, entries in seen:
        if missing := sorted(set(wanted.interfaces) - set(interfaces.values())):
            return f"no IPv{version} multicast interfaces: {' '.join(missing)}"
        have |= {(e.source, e.group, e.iif, frozenset(e.oifs)) for e in entries}
    absent = [e for e in wanted.entries if (e.source, e.group, e.iif, frozenset(e.oifs)) not in have]
    return f"not in the kernel's table: {'; '.join(map(str, absent))}" if absent else ""
