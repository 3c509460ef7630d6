"""Facts about processes that a Wait may wait for; `testbed.lab.probes` observes them in the kernel or on disk."""

from __future__ import annotations

from collections.abc import Container, Iterable
from ipaddress import IPv6Address
from itertools import pairwise

from testbed.steps import Probe

_TENTATIVE = 0x40  # IFA_F_TENTATIVE (if_addr.h)
_LISTEN, _CLOSE = "0A", "07"  # include/net/tcp_states.h


def ports(tables: Iterable[str], states: Container[str] = (_LISTEN,)) -> set[int]:
    """Return the local ports of sockets in these states, of the tables /proc/net/tcp, tcp6, udp and udp6."""
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] in states}


class Listening(Probe, frozen=True):
    """A TCP (or MPTCP) server listens on a port."""

    port: int

    def __str__(self) -> str:
        return f"listening on port {self.port}"

    def files(self) -> tuple[str, ...]:
        """Return the tables of TCP sockets."""
        return ("/proc/self/net/tcp", "/proc/self/net/tcp6")

    def lacking(self, *texts: str) -> str:
        """Return which listener is missing, "" when there is one."""
        return "" if self.port in ports(texts) else f"no listener on {self.port}"


class Capturing(Probe, frozen=True):
    """A packet socket receives this interface's packets, and dumpcap's log says that it writes them."""

    ifname: str
    log: str

    def __str__(self) -> str:
        return f"capturing {self.ifname}"


class FileHas(Probe, frozen=True):
    """A file of the lab's folder exists and is not empty."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} has content"


class Serving(Probe, frozen=True):
    """A TCP (or MPTCP) server listens on a port, or a UDP socket is bound to it."""

    port: int

    def __str__(self) -> str:
        return f"serving on port {self.port}"

    def files(self) -> tuple[str, ...]:
        """Return the tables of sockets."""
        return tuple(f"/proc/self/net/{name}" for name in ("tcp", "tcp6", "udp", "udp6"))

    def lacking(self, *texts: str) -> str:
        """Return which socket is missing, "" when there is one."""
        # A UDP socket that is not connected is in the state TCP_CLOSE.
        return "" if self.port in ports(texts, (_LISTEN, _CLOSE)) else f"nothing serves on port {self.port}"


class LogSays(Probe, frozen=True):
    """A line at the end of a file of the lab's folder matches an expression."""

    path: str
    expression: str

    def __str__(self) -> str:
        return f"{self.path} has a line that matches {self.expression!r}"


class Addressed(Probe, frozen=True):
    """The node has these addresses, and duplicate address detection is done with them."""

    addresses: tuple[str, ...]

    def __str__(self) -> str:
        return f"addresses {' '.join(self.addresses)}"

    def files(self) -> tuple[str, ...]:
        """Return the local routes of IPv4 and the addresses of IPv6."""
        return ("/proc/self/net/fib_trie", "/proc/self/net/if_inet6")

    def lacking(self, *texts: str) -> str:
        """Return which addresses are missing, "" when none is."""
        trie, six = texts
        rows = [row.split() for row in trie.splitlines()]
        found = {a[1] for a, b in pairwise(rows) if a[:1] == ["|--"] and b[-1:] == ["LOCAL"]}
        # net/ipv6/addrconf.c: address, index, length, scope, flags, name
        for fields in (row.split() for row in six.splitlines()):
            if len(fields) == 6 and not int(fields[4], 16) & _TENTATIVE:
                found.add(str(IPv6Address(bytes.fromhex(fields[0]))))
        missing = [a for a in self.addresses if a not in found]
        return f"no address {' '.join(missing)}" if missing else ""
