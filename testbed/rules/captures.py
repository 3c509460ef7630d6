"""What is wrong with captures: patterns that match nothing, filters, names that mislead dumpcap (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from testbed.language.document import Fault, Path
from testbed.language.explain import Names, name_set, suggest
from testbed.plan.network import WILD, Network
from testbed.rules.fault import there_are

_FILTER = 4096  # characters of a filter
_PATTERN = 200  # characters of a pattern: a name of each has 32 and 15, and a set such as [ab] stands for one of them
# What libpcap and dumpcap take for another source than an interface of that name: its number in their list, standard
# input, all interfaces, and sources that are told by how their names begin (libpcap: pcap.c, capture_source_types).
_DEVICE = re.compile("-|[0-9]+|any|(usbmon|bluetooth|bluetooth-monitor|nflog|nfqueue|dbus-|rdmasniff|netmap).*")
# A field of a protocol that is compared, or words that compare: no capture filter has them.
_DISPLAY = re.compile(
    r"(?:^|[\s(!])(?:[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+\s*(?:==|!=|~|[<>]=?|eq\b|ne\b|contains\b|matches\b|in\b)"
    r"|(?:http|dns|tls|ssl|mptcp|frame|eth)(?:\.[a-z0-9_.]+)?\s*(?:$|[)&|]|==|and\b|or\b))",
    re.IGNORECASE,
)


def faults(net: Network, nodes: Names, doubt: set[str]) -> Iterator[Fault]:
    """Yield (path, sentence, hint) for each fault."""
    ends = name_set(f"{i.node}:{i.name}" for k in net.interfaces for i in net.interfaces[k])
    for n, capture in enumerate(net.topology.capture):
        at: Path = ("capture", n, "interfaces")
        if capture.filter is not None and (not capture.filter.isprintable() or len(capture.filter) > _FILTER):
            what = f"at most {_FILTER} printable characters in one line, as in `tcp port 80`"
            yield ("capture", n, "filter"), f"this is not a valid packet filter (pcap-filter(7)): {what}", ""
        elif capture.filter is not None and (match := _DISPLAY.search(capture.filter)) is not None:
            what = f"{match[0].strip()!r} belongs to a display filter of Wireshark: `filter` takes a capture filter"
            yield ("capture", n, "filter"), what, "see pcap-filter(7), such as `host 10.0.1.1 and tcp port 80`"
        if len(capture.interfaces) > _PATTERN:
            yield (
                at,
                f"a pattern of interfaces has at most {_PATTERN} characters, and this has {len(capture.interfaces)}",
                "",
            )
            continue
        node, colon, _ = capture.interfaces.partition(":")
        if found := net.captured(capture.interfaces):
            for name in dict.fromkeys(i for _, i in found if _DEVICE.fullmatch(i)):
                yield at, f"dumpcap(1) reads {name!r} as something other than this interface: rename the interface", ""
            continue
        if not colon:
            cure = f"write node:interface, or {node or 'client'}:* for all of a node"
            yield at, f"{capture.interfaces!r} does not name an interface: {cure}", ""
        elif node not in nodes and not (WILD.search(node) and any(fnmatchcase(k, node) for k in nodes)):
            yield at, f"there is no node {node!r}", suggest(node, nodes) or there_are(nodes)
        elif "links" not in doubt and not any(fnmatchcase(d, f"nodes.{node}") for d in doubt):
            hint = suggest(capture.interfaces, ends) or there_are(ends)
            yield at, f"no interface matches {capture.interfaces!r}", hint
