"""What is wrong with links: their names, their ends, their shaping (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from testbed.language.document import Fault, Path
from testbed.language.explain import Names, suggest
from testbed.language.topology import WAYS, Direction, Link, Shaping, Topology, Way
from testbed.nodes.place import misnamed
from testbed.rules.addresses import wrong
from testbed.rules.fault import there_are

_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")
_LINK = 64  # characters of a name


def faults(topology: Topology, nodes: Names) -> Iterator[Fault]:
    """Yield (path, sentence, hint) for each fault."""
    seen: dict[str, int] = {}
    macs: dict[str, str] = {}
    names: dict[str, int] = {}
    for n, link in enumerate(topology.links):
        at = ("links", n)
        if link.name is not None:
            if link.name in names:
                other = "-".join(topology.links[names[link.name]].ends)
                yield (*at, "name"), f"the link {other} already has the name {link.name!r}", ""
            names.setdefault(link.name, n)
            if ":" in link.name or not link.name:
                yield (
                    (*at, "name"),
                    f"{link.name!r} is not a valid name of a link: it must not be empty or contain a colon",
                    "",
                )
            elif len(link.name) > _LINK or not link.name.isprintable():
                what = f"at most {_LINK} characters, all of them printable"
                yield (*at, "name"), f"{link.name!r} is not a valid name of a link: {what}", ""
        for e, text in enumerate(link.ends):
            where = (*at, "ends", e)
            node, colon, ifname = text.partition(":")
            if not colon:
                example = f"{text or 'client'}:eth0"
                yield where, f"{text!r} is not an end of a link: write node:interface, such as {example}", ""
                continue
            if node not in nodes:
                yield where, f"there is no node {node!r}", suggest(node, nodes) or there_are(nodes)
            if problem := misnamed(ifname):
                yield where, problem, ""
            elif seen.get(text) == n:
                yield where, f"{text} is both ends: a link needs two different interfaces", ""
            elif text in seen:
                other = _called(topology.links[seen[text]])
                yield where, f"{text} is already an end of {other}: an interface belongs to one link", ""
            seen.setdefault(text, n)
            for k, address in enumerate(link.stated(e) or ()):
                if problem := wrong(address):
                    yield (*at, "addresses", e, k), problem, ""
        for e, hardware in enumerate(link.macs or ()):
            if hardware is None:
                continue
            if problem := _mac(hardware):
                yield (*at, "macs", e), problem, ""
            elif (other := macs.setdefault(hardware.lower(), link.ends[e])) != link.ends[e]:
                yield (*at, "macs", e), f"{hardware} is already the address of {other}", ""
        yield from shaping(link, link.mtu, topology, at)


def _mac(text: str) -> str:
    """Return what is wrong with a MAC address, "" if it is valid."""
    if not _MAC.fullmatch(text):
        return f"{text!r} is not a MAC address: write it as 02:00:00:00:00:01"
    if int(text[:2], 16) & 1 or not int(text.replace(":", ""), 16):
        return f"{text} can't be the address of an interface: it is a group's, or zero"
    return ""


def _trace(part: Direction, whole: bool, at: Path) -> Iterator[Fault]:
    """Yield what is wrong with a trace; its file has been read."""
    assert part.trace is not None
    if not whole:
        yield at, "a link follows a trace during the whole run: state it at the link", ""
        return
    points = part.trace.points
    if not points:
        yield at, "a trace needs a `file`", ""
        return
    if points[0][0] < 0 or any(b[0] <= a[0] for a, b in pairwise(points)):
        yield (*at, "points"), "the times of the points must ascend, from 0 on", ""
    if part.trace.loop and (part.trace.period or 0.0) <= points[-1][0]:
        yield (*at, "period"), f"points that begin again need a `period` after the last of them, {points[-1][0]:g}s", ""
    for key in part.trace.states():
        if getattr(part, key) is not None:
            yield (*at[:-1], key), f"the trace says what the {key} is: leave this out", ""


def _called(link: Link) -> str:
    return f"the link {link.name or '-'.join(link.ends)}"


def shaping(what: Shaping, mtu: int | None, topology: Topology, at: Path) -> Iterator[Fault]:
    """Yield faults in the shaping of a link, or in an event's part of it, whose other values are unknown here."""
    whole = isinstance(what, Link)
    if what.mtu is not None and what.mtu < 1280 and "ipv6" in topology.families:
        hint = "or `families: [ipv4]`"
        yield (*at, "mtu"), f"IPv6 requires an mtu of at least 1280 (RFC 8200 section 5), not {what.mtu}", hint
    parts: tuple[tuple[tuple[Way, ...], Direction | None], ...]
    parts = ((WAYS, what), *(((way,), getattr(what, way)) for way in WAYS))
    for keys, part in parts:
        if part is None:
            continue
        where = (*at, *keys) if len(keys) == 1 else at
        if part.trace is not None:
            yield from _trace(part, whole, (*where, "trace"))
        vague = (part.jitter, part.reorder, part.distribution, part.burst)  # these belong to another key
        ways = [what.shape(key) for key in keys] if any(v is not None for v in vague) else []
        if whole and part.jitter is not None and any(w.delay is None for w in ways):
            yield (*where, "jitter"), "jitter varies a delay: give `delay` as well", ""
        if whole and part.reorder is not None and any(not w.delay for w in ways):
            yield (*where, "reorder"), "reordered packets overtake delayed ones: give `delay` as well", ""
        if whole and part.distribution is not None and any(w.jitter is None for w in ways):
            yield (*where, "distribution"), "a distribution describes the jitter: give `jitter` as well", ""
        if whole and part.burst is not None and any(w.rate is None for w in ways):
            yield (*where, "burst"), "a burst belongs to a rate: give `rate` as well", ""
        frame = (what.mtu or mtu or 1500) + 14
        if part.burst is not None and part.burst < frame:
            yield (
                (*where, "burst"),
                f"a burst smaller than one frame lets no packet through: give at least {frame}b",
                "",
            )
        if part.queue is not None and part.queue.discipline == "bfifo" and part.queue.packets is not None:
            message = "bfifo counts bytes: write `limit: 64kb`, or choose another discipline"
            yield (*where, "queue", "packets"), message, ""
        if part.queue is not None and part.queue.discipline != "bfifo" and part.queue.limit is not None:
            message = f"{part.queue.discipline} counts packets: write `packets: 1000`"
            yield (*where, "queue", "limit"), message, ""
