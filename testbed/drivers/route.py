"""Routes and policy rules as requests (rtnetlink(7), rtnetlink.h, fib_rules.h)."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

from msgspec import Struct

from testbed.linux import wire
from testbed.linux.wire import Here, Message, attr, u32

RTM_NEWROUTE, RTM_NEWRULE = 24, 32
MAIN = 254
_STATIC, _UNICAST, _LINK, _UNIVERSE = 4, 1, 253, 0


class RouteAdd(Struct, frozen=True, tag=True):
    """A static route to `to` (a network, or "default" with the family of `via`)."""

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

    def encode(self, here: Here) -> Message:
        """Encode; an equal route is replaced, so that a link coming back may state its routes again."""
        family = socket.AF_INET6 if self.version() == 6 else socket.AF_INET
        body = u32(4, here.index(self.dev)) + u32(15, self.table)  # RTA_OIF, RTA_TABLE
        length = 0
        if self.to != "default":
            network, _, text = self.to.partition("/")
            raw = socket.inet_pton(family, network)  # ipaddress takes thirty times as long
            length = int(text) if text else 8 * len(raw)
            body += attr(1, raw)  # RTA_DST
        if self.via:
            body += attr(5, socket.inet_pton(family, self.via))  # RTA_GATEWAY
        table = self.table if self.table < 256 else 0
        scope = _UNIVERSE if self.via else _LINK
        head = struct.pack("=BBBBBBBBI", family, length, 0, 0, table, _STATIC, scope, _UNICAST, 0)
        return Message(RTM_NEWROUTE, wire.NLM_F_CREATE | wire.NLM_F_REPLACE, head + body)


class RuleAdd(Struct, frozen=True, tag=True):
    """Packets from the address `source` are routed by `table`."""

    source: str
    table: int

    def __str__(self) -> str:
        return f"ip rule add from {self.source} lookup {self.table}"

    def encode(self, here: Here) -> Message:
        """Encode."""
        source = ip_address(self.source)
        family = socket.AF_INET6 if source.version == 6 else socket.AF_INET
        head = struct.pack("=BBBBBBBBI", family, 0, source.max_prefixlen, 0, 0, 0, 0, 1, 0)  # FR_ACT_TO_TBL
        body = attr(2, source.packed) + u32(15, self.table)  # FRA_SRC, FRA_TABLE
        return Message(RTM_NEWRULE, wire.NLM_F_CREATE | wire.NLM_F_EXCL, head + body)
