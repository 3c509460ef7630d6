"""Which multicast groups a node listens to, as the kernel tells (IGMPv3: RFC 3376, MLDv2: RFC 3810).

Sources: net/ipv4/igmp.c (igmp_mc_seq_show, igmp_mcf_seq_show) and net/ipv6/mcast.c (igmp6_mc_seq_show,
igmp6_mcf_seq_show), which print /proc/net/igmp, mcfilter, igmp6 and mcfilter6.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from ipaddress import ip_address

TABLES = {(4, False): "igmp", (4, True): "mcfilter", (6, False): "igmp6", (6, True): "mcfilter6"}


@dataclass(frozen=True, slots=True)
class Joined:
    """A group has a member on an interface: of all its sources (*,G), or of one (S,G)."""

    group: str
    ifname: str
    source: str = ""

    def __str__(self) -> str:
        return f"member of ({self.source or '*'}, {self.group}) on {self.ifname}"

    def table(self) -> str:
        """Return the file below /proc/net that tells."""
        return TABLES[6 if ":" in self.group else 4, bool(self.source)]


def member(wanted: Joined, index: int, table: str) -> bool:
    """Say whether a table has a member; the number of the interface stands for its name, which is cut there."""
    if wanted.source:
        return (index, wanted.group, wanted.source) in sources(table)
    return (index, wanted.group) in (groups6(table) if ":" in wanted.group else groups(table))


def sources(table: str) -> set[tuple[int, str, str]]:
    """Return interface, group and source of every filter that includes (mcfilter and mcfilter6 alike)."""
    rows = [row.split() for row in table.splitlines()[1:]]
    return {(int(r[0]), _number(r[2]), _number(r[3])) for r in rows if int(r[4])}


def groups(table: str) -> set[tuple[int, str]]:
    """Return interface and group of every row of `igmp`: an interface, then its groups, indented."""
    found, index = set(), 0
    for row in table.splitlines()[1:]:
        if row[:1].isspace():
            found.add((index, str(ip_address(int(row.split()[0], 16).to_bytes(4, sys.byteorder)))))
        else:
            index = int(row.split()[0])
    return found


def groups6(table: str) -> set[tuple[int, str]]:
    """Return interface and group of every row of `igmp6`."""
    return {(int(r[0]), _number(r[2])) for r in map(str.split, table.splitlines())}


def _number(text: str) -> str:
    """Read an address that is one hexadecimal number: eight digits (after 0x) for IPv4, 32 for IPv6."""
    return str(ip_address(bytes.fromhex(text.removeprefix("0x"))))
