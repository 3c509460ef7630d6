"""Routes and policy rules as requests (rtnetlink(7), rtnetlink.h, fib_rules.h)."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from testbed.linux import uapi, wire
from testbed.linux.wire import Message, Space, attr, u32
from testbed.steps import Request

MAIN = uapi.RT_TABLE_MAIN
_LAST = 2**31 - 1  # a metric above those of all other routes


class RouteAdd(Request, frozen=True):
    """Add a static route to `to`: a network, or "default" with the family of `via`."""

    to: str
    dev: str
    via: str = ""
    table: int = MAIN

    def __str__(self) -> str:
        words = [f"ip route add {self.to}"]
        words += [f"via {self.via}"] if self.via else []
        words += [f"dev {self.dev}"]
        words += [f"table {self.table}"] if self.table != MAIN else []
        return " ".join(words)

    def version(self) -> int:
        """Return the IP version, 4 or 6."""
        return 6 if ":" in (self.via or self.to) else 4

    def encode(self, space: Space) -> Message:
        """Encode; replace an equal route, so that the routes of a link that comes back can be stated again."""
        family = socket.AF_INET6 if self.version() == 6 else socket.AF_INET
        body = u32(uapi.RTA_OIF, space.index(self.dev)) + u32(uapi.RTA_TABLE, self.table)
        length = 0
        if self.to != "default":
            network, _, text = self.to.partition("/")
            raw = socket.inet_pton(family, network)  # ipaddress takes thirty times as long
            length = int(text) if text else 8 * len(raw)
            body += attr(uapi.RTA_DST, raw)
        if self.via:
            body += attr(uapi.RTA_GATEWAY, socket.inet_pton(family, self.via))
        table = self.table if self.table < 256 else 0
        scope = uapi.RT_SCOPE_UNIVERSE if self.via else uapi.RT_SCOPE_LINK
        head = uapi.RTMSG.pack(family, length, 0, 0, table, uapi.RTPROT_STATIC, scope, uapi.RTN_UNICAST, 0)
        return Message(uapi.RTM_NEWROUTE, wire.NLM_F_CREATE | wire.NLM_F_REPLACE, head + body)


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
        length = 0
        if self.to != "default":
            network, _, text = self.to.partition("/")
            raw = socket.inet_pton(family, network)
            length = int(text) if text else 8 * len(raw)
            body += attr(uapi.RTA_DST, raw)
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
