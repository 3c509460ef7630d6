"""Routes and policy rules as requests (rtnetlink(7), rtnetlink.h, fib_rules.h)."""

from __future__ import annotations

import socket
from collections.abc import Container, Sequence
from ipaddress import ip_address

from msgspec import Struct
from msgspec.structs import replace

from testbed.linux import uapi, wire
from testbed.linux.wire import Message, Space, attr, u32
from testbed.steps import Request

MAIN = uapi.RT_TABLE_MAIN
_LAST = 2**31 - 1  # a metric above those of all other routes


class NextHop(Struct, frozen=True):
    """Where packets go: out of an interface, and to a router on its link unless the destination is there itself."""

    dev: str
    via: str = ""

    def __str__(self) -> str:
        return f"via {self.via} dev {self.dev}" if self.via else f"dev {self.dev}"


class RouteAdd(Request, frozen=True):
    """Add a static route to `to`: a network, or "default" with the family of `via`.

    `more` are further next hops: each flow takes one of them (`fib_multipath_hash_policy`).
    """

    to: str
    dev: str
    via: str = ""
    table: int = MAIN
    metric: int | None = None
    more: tuple[NextHop, ...] = ()

    @classmethod
    def by(cls, to: str, hops: Sequence[NextHop], metric: int | None = None) -> RouteAdd:
        """Return a route by one next hop or several."""
        return cls(to, hops[0].dev, hops[0].via, metric=metric, more=tuple(hops[1:]))

    def __str__(self) -> str:
        words = [f"ip route add {self.to}"]
        words += [] if self.more else [str(self.hops()[0])]
        words += [f"table {self.table}"] if self.table != MAIN else []
        words += [f"metric {self.metric}"] if self.metric is not None else []
        words += [f"nexthop {hop}" for hop in self.hops()] if self.more else []
        return " ".join(words)

    def hops(self) -> tuple[NextHop, ...]:
        """Return every next hop."""
        return (NextHop(self.dev, self.via), *self.more)

    def without(self, dead: Container[str]) -> RouteAdd | None:
        """Return the route by what it has besides some interfaces, None when nothing is left."""
        left = [hop for hop in self.hops() if hop.dev not in dead]
        return replace(self, dev=left[0].dev, via=left[0].via, more=tuple(left[1:])) if left else None

    def version(self) -> int:
        """Return the IP version, 4 or 6."""
        return 6 if ":" in (self.via or self.to) else 4

    def encode(self, space: Space) -> Message:
        """Encode; replace an equal route, so that the routes of a link that comes back can be stated again."""
        family = socket.AF_INET6 if self.version() == 6 else socket.AF_INET
        body = u32(uapi.RTA_TABLE, self.table)
        if not self.more:
            body = u32(uapi.RTA_OIF, space.index(self.dev)) + body
        if self.metric is not None:
            body += u32(uapi.RTA_PRIORITY, self.metric)
        destination, length = _destination(self.to, family)
        body += destination
        if self.more:
            body += attr(uapi.RTA_MULTIPATH, b"".join(_nexthop(space.index(h.dev), h.via) for h in self.hops()))
        elif self.via:
            body += attr(uapi.RTA_GATEWAY, socket.inet_pton(family, self.via))
        table = self.table if self.table < 256 else 0
        scope = uapi.RT_SCOPE_UNIVERSE if self.via else uapi.RT_SCOPE_LINK
        head = uapi.RTMSG.pack(family, length, 0, 0, table, uapi.RTPROT_STATIC, scope, uapi.RTN_UNICAST, 0)
        return Message(uapi.RTM_NEWROUTE, wire.NLM_F_CREATE | wire.NLM_F_REPLACE, head + body)


def _destination(to: str, family: int) -> tuple[bytes, int]:
    """Return the attribute for what a route leads to, and its prefix length: none, and 0, for all addresses."""
    if to in ("default", "0.0.0.0/0", "::/0"):
        return b"", 0
    network, _, text = to.partition("/")
    raw = socket.inet_pton(family, network)  # ipaddress takes thirty times as long
    return attr(uapi.RTA_DST, raw), int(text) if text else 8 * len(raw)


def _nexthop(index: int, via: str) -> bytes:
    """Return struct rtnexthop with its gateway; each has the same weight."""
    family = socket.AF_INET6 if ":" in via else socket.AF_INET
    gateway = attr(uapi.RTA_GATEWAY, socket.inet_pton(family, via)) if via else b""
    return uapi.RTNEXTHOP.pack(uapi.RTNEXTHOP.size + len(gateway), 0, 0, index) + gateway


class Unreachable(Request, frozen=True):
    """Refuse what no other route of a table leads to: a network, or "default" of an IP version."""

    to: str
    table: int
    version: int

    def __str__(self) -> str:
        to = {4: "0.0.0.0/0", 6: "::/0"}[self.version] if self.to == "default" else self.to
        return f"ip route add unreachable {to} table {self.table} metric {_LAST}"

    def encode(self, space: Space) -> Message:
        """Encode."""
        family = socket.AF_INET6 if self.version == 6 else socket.AF_INET
        body = u32(uapi.RTA_TABLE, self.table) + u32(uapi.RTA_PRIORITY, _LAST)
        destination, length = _destination(self.to, family)
        body += destination
        table = self.table if self.table < 256 else 0
        scope = uapi.RT_SCOPE_UNIVERSE
        head = uapi.RTMSG.pack(family, length, 0, 0, table, uapi.RTPROT_STATIC, scope, uapi.RTN_UNREACHABLE, 0)
        return Message(uapi.RTM_NEWROUTE, wire.NLM_F_CREATE | wire.NLM_F_REPLACE, head + body)


class RuleAdd(Request, frozen=True):
    """Route packets from the address `source` by `table`."""

    source: str
    table: int

    def __str__(self) -> str:
        return f"ip rule add from {self.source} lookup {self.table}"

    def encode(self, space: Space) -> Message:
        """Encode."""
        source = ip_address(self.source)
        family = socket.AF_INET6 if source.version == 6 else socket.AF_INET
        head = uapi.FIB_RULE_HDR.pack(family, 0, source.max_prefixlen, 0, 0, 0, 0, uapi.FR_ACT_TO_TBL, 0)
        body = attr(uapi.FRA_SRC, source.packed) + u32(uapi.FRA_TABLE, self.table)
        return Message(uapi.RTM_NEWRULE, wire.NLM_F_CREATE | wire.NLM_F_EXCL, head + body)
