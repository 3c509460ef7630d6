"""The TTL of an answer, by ping(8): each router on the way lowers it by one (RFC 791 section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from testbed.steps import Spawn

INITIAL = 64  # what Linux sends: net.ipv4.ip_default_ttl, net.ipv6.conf.all.hop_limit
_TTL = re.compile(r"\bttl=(\d{1,3})\b", re.ASCII)


def ask(node: str, name: str, address: str, at: float) -> Spawn:
    """Send one echo request and wait two seconds for the answer; ping ends with status 1 if none comes."""
    argv = ("ping", "-n", "-c", "1", "-W", "2", address)
    return Spawn(node, name, argv, stdout=f"{node}/{name}.txt", at=at, within=10, may_end=True)


def parse_ttl(lines: Iterable[str]) -> int | None:
    """Return the TTL of the answer in ping's output, None without an answer."""
    found = next(filter(None, map(_TTL.search, lines)), None)
    return int(found[1]) if found is not None else None
