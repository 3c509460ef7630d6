"""The multicast groups that a node listens to, read from the kernel (IGMPv3: RFC 3376, MLDv2: RFC 3810).

Sources: net/ipv4/igmp.c (igmp_mc_seq_show, igmp_mcf_seq_show) and net/ipv6/mcast.c (igmp6_mc_seq_show,
igmp6_mcf_seq_show), which print /proc/net/igmp, mcfilter, igmp6 and mcfilter6.
"""

from __future__ import annotations

import sys
from ipaddress import ip_address

from testbed.linux.wire import decoder
from testbed.steps import Probe

TABLES = {4: ("igmp", "mcfilter"), 6: ("igmp6", "mcfilter6")}


class Joined(Probe, frozen=True):
    """A group has a member on an interface: for all sources (*,G), or for one (S,G)."""

    group: str
    ifname: str
    source: str = ""

    def __str__(self) -> str:
        return f"member of ({self.source or '*'}, {self.group}) on {self.ifname}"

    def tables(self) -> tuple[str, str]:
        """Return the files below /proc/net that list groups and their sources."""
        return TABLES[6 if ":" in self.group else 4]


@decoder
def lacking(wanted: Joined, index: int, joined: str, filters: str) -> str:
    """Return what the tables lack, "" if they have the member; `index` is the number of the interface.

    The kernel starts the list of sources at the first interface whose newest group has sources (igmp_mcf_get_first),
    and leaves out all interfaces before it. An interface may be missing there, but of a listed one all sources are.
    """
    groups, sources = wanted.tables()
    if (index, wanted.group) not in (groups6(joined) if ":" in wanted.group else groups4(joined)):
        return f"no such group in /proc/net/{groups}"
    listed = {(g, s) for i, g, s in included(filters) if i == index}
    if wanted.source and listed and (wanted.group, wanted.source) not in listed:
        return f"no such source in /proc/net/{sources}"
    return ""


def included(table: str) -> set[tuple[int, str, str]]:
    """Return interface, group and source of every including filter (of mcfilter or mcfilter6)."""
    rows = [row.split() for row in table.splitlines()[1:]]
    return {(int(r[0]), _number(r[2]), _number(r[3])) for r in rows if int(r[4])}


def groups4(table: str) -> set[tuple[int, str]]:
    """Return interface and group of every row of `igmp`, where the indented groups follow their interface."""
    groups, index = set(), 0
    for row in table.splitlines()[1:]:
        if row[:1].isspace():
            groups.add((index, str(ip_address(int(row.split()[0], 16).to_bytes(4, sys.byteorder)))))
        else:
            index = int(row.split()[0])
    return groups


def groups6(table: str) -> set[tuple[int, str]]:
    """Return interface and group of every row of `igmp6`."""
    return {(int(r[0]), _number(r[2])) for r in map(str.split, table.splitlines())}


def _number(text: str) -> str:
    """Parse an address that is one hexadecimal number: 8 digits (after 0x) for IPv4, 32 for IPv6."""
    return str(ip_address(bytes.fromhex(text.removeprefix("0x"))))
