"""Role `middlebox`: what a router or a bridge does to packets beside passing them on (nft(8))."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import ClassVar, Literal

from pydantic import Field

from testbed import features
from testbed.drivers.nftables import Action, Base, Family, NftChain, NftFlush, NftRule, NftTable, Way
from testbed.nodes.place import Interface, Place
from testbed.nodes.role import Role, RoleFault
from testbed.spec import Spec
from testbed.steps import Configure, Step
from testbed.units import Address, Moment, Rate, Size

Subtype = Literal[
    "any",
    "mp_capable",
    "mp_join",
    "dss",
    "add_addr",
    "add_addr_echo",
    "rm_addr",
    "mp_prio",
    "mp_fail",
    "mp_fastclose",
    "mp_tcprst",
]
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_BURST = 65536  # bytes: one that TCP segmentation leaves whole between namespaces
_ROUTED = ("nat", "firewall")


class Match(Spec):
    """Which packets a rule is about; all of these must hold, and what is left out does not matter."""

    subtype: Subtype | None = Field(None, description="Of the packet's first MPTCP option (RFC 8684, section 8.1)")
    packet: Literal["syn", "syn_ack", "not_syn"] | None = Field(None, description="By the flags of TCP")
    protocol: Literal["tcp", "udp"] | None = Field(None, description="Left out, any, unless other keys imply TCP")
    source: Address | None = Field(None, description="An address or a network")
    destination: Address | None = Field(None, description="An address or a network")
    port: int | None = Field(None, ge=1, le=65535, description="Destination port")


class Rule(Spec):
    """Which packets, on which link and in which direction, when and how often, and what happens to them."""

    name: str | None = Field(None, description="Its counter is NODE.middlebox.NAME; `rule_1` and so on if left out")
    link: str | None = Field(None, description="The name or an end of a link of this node; every packet if left out")
    direction: Literal["forward", "reverse"] | None = Field(
        None, description="Of the link: from its first end to its second, or back; both if left out"
    )
    match: Match = Field(Match(), description="Which packets; all if left out")
    action: Action = Field(description="What happens to a packet")
    times: int | None = Field(None, ge=1, le=10_000, description="Of the first so many packets only")
    window: tuple[Moment, Moment] | None = Field(None, description="In this part of a run only: [2s, 5s]")
    rate: Rate | None = Field(None, description="For `limit`: what is above it is dropped")
    burst: Size | None = Field(None, description="For `limit`: how much may come at once; 64kb")


class Middlebox(Role):
    """Rules that are tried in their order; after `drop` and `reject` no more is tried."""

    called: ClassVar[str] = "a middlebox"

    rules: tuple[Rule, ...] = Field(min_length=1, max_length=200, description="Which packets, and what happens to them")

    def needs(self, place: Place) -> tuple[features.Feature, ...]:
        """Return what nf_tables must offer."""
        found: list[features.Feature] = []
        for rule in self.rules:
            family = _family(rule, place)
            found.append(features.MIDDLEBOX if family == "inet" else features.MIDDLEBOX_BRIDGE)
            found += [features.MIDDLEBOX_NAT] if rule.action in _ROUTED else []
            found += [features.MIDDLEBOX_REJECT] if rule.action == "reject" and family == "bridge" else []
        return tuple(dict.fromkeys(found))

    def faults(self, place: Place) -> Iterator[RoleFault]:
        """Yield (path below this role, sentence) for each fault."""
        if not place.forwards and not place.bridge:
            passes = "a middlebox passes packets on: give the node `router: {}` or `bridge: {}` as well"
            yield (), f"{place.node} is neither a router nor a bridge, and {passes}"
            return
        seen: dict[str, int] = {}
        for n, rule in enumerate(self.rules):
            name = named(rule, n)
            if not _NAME.fullmatch(name):
                what = "a small letter, then small letters, digits and _, at most 31 in all"
                yield ("rules", n, "name"), f"{name!r} is not a valid name of a rule: {what}"
            elif name in seen:
                yield ("rules", n), f"item {seen[name] + 1} of `rules` is called {name} as well: give it another `name`"
            seen.setdefault(name, n)
            for key, what in (*_place_faults(rule, place), *_form_faults(rule)):
                yield ("rules", n, *key), what

    def steps(self, place: Place) -> Iterator[Step]:
        """Yield the tables, and the rules that hold all the time."""
        rules = [(named(rule, n), rule, _family(rule, place)) for n, rule in enumerate(self.rules)]
        for family in dict.fromkeys(f for _, _, f in rules):
            bases = dict.fromkeys(_base(rule, f) for _, rule, f in rules if f == family)
            yield Configure(place.node, NftTable(family, tuple(bases)))
        for name, rule, family in rules:
            yield Configure(place.node, NftChain(family, name, _base(rule, family), _ways(rule, place)))
            if rule.window is None:
                yield Configure(place.node, _made(name, rule, family))

    def during(self, place: Place) -> Iterator[Step]:
        """Yield the begin and the end of each window."""
        for n, rule in enumerate(self.rules):
            if rule.window is not None:
                name, family = named(rule, n), _family(rule, place)
                yield Configure(place.node, _made(name, rule, family), rule.window[0])
                yield Configure(place.node, NftFlush(family, name), rule.window[1])

    def times(self) -> Iterator[tuple[tuple[str | int, ...], float]]:
        """Yield the end of each window."""
        yield from ((("rules", n, "window"), r.window[1]) for n, r in enumerate(self.rules) if r.window is not None)

    def samples(self) -> tuple[str, ...]:
        """Return that the counters of nf_tables are read."""
        return ("middlebox",)

    def counts(self) -> dict[str, str]:
        """Return the counter of each rule, and what it is of."""
        return {named(rule, n): _told(rule) for n, rule in enumerate(self.rules)}


def named(rule: Rule, n: int) -> str:
    """Return the name of a rule and of its counter."""
    return rule.name if rule.name is not None else f"rule_{n + 1}"


def _told(rule: Rule) -> str:
    what = (rule.match.subtype, rule.match.packet, rule.match.protocol)
    where = f"on {rule.link}" if rule.link is not None else ""
    return " ".join(filter(None, (rule.action, *what, where, rule.direction)))


def _interface(rule: Rule, place: Place) -> Interface | None:
    return next((i for i in place.interfaces if rule.link is not None and rule.link in i.link), None)


def _family(rule: Rule, place: Place) -> Family:
    """Return where a rule's packets pass: between the ports of a bridge, or between networks."""
    interface = _interface(rule, place)
    if interface is not None:
        return "bridge" if interface.port else "inet"
    return "inet" if place.forwards else "bridge"


def _base(rule: Rule, family: Family) -> Base:
    if rule.action == "nat":
        return "POSTROUTING"
    # net/bridge/netfilter/nft_reject_bridge.c: nft_reject_bridge_validate
    return "PREROUTING" if rule.action == "reject" and family == "bridge" else "FORWARD"


def _ways(rule: Rule, place: Place) -> tuple[tuple[Way, str], ...]:
    """Return how the packets of a rule come to a node or leave it."""
    if (interface := _interface(rule, place)) is None:
        return ()
    return tuple((way, interface.name) for way in _directions(rule, interface))


def _directions(rule: Rule, interface: Interface) -> tuple[Way, ...]:
    """Return whether packets come by a link or leave by it: its second end is where `forward` leads."""
    if rule.action in _ROUTED:
        return ("oifname",) if rule.action == "nat" else ("iifname",)
    if rule.direction is None:
        return ("iifname", "oifname")
    return ("iifname",) if (interface.at[-1] == 1) == (rule.direction == "forward") else ("oifname",)


def _made(name: str, rule: Rule, family: Family) -> NftRule:
    match = rule.match
    burst = (rule.burst or _BURST) if rule.action == "limit" else 0
    return NftRule(
        family,
        name,
        rule.action,
        match.subtype or "",
        match.packet or "",
        match.protocol or "",
        match.source or "",
        match.destination or "",
        match.port or 0,
        rule.times or 0,
        rule.rate or 0,
        burst,
    )


def _place_faults(rule: Rule, place: Place) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what does not fit the node."""
    interface = _interface(rule, place)
    if rule.link is not None and interface is None:
        known = ", ".join(dict.fromkeys(i.link[0] for i in place.interfaces if i.link)) or "none"
        yield ("link",), f"{place.node} has no link {rule.link!r} (it has {known})"
        return
    if rule.link is None and place.forwards and place.bridge:
        yield (), f"{place.node} is a router and a bridge: say which packets are meant by their `link`"
    if rule.action in _ROUTED and rule.link is None:
        side = "leave by a link" if rule.action == "nat" else "come by a link"
        yield (), f"`{rule.action}` is about packets that {side}: give the `link` to the outside"
    family = _family(rule, place)
    if family == "bridge" and rule.action in _ROUTED:
        why = "a bridge has no addresses to translate and does not follow connections"
        yield ("action",), f"`{rule.action}` needs a router, and {place.node} bridges these packets: {why}"
    if (
        family == "bridge"
        and rule.action == "reject"
        and (interface is None or "oifname" in _directions(rule, interface))
    ):
        way = "a direction" if interface is None else f"`direction: {('reverse', 'forward')[int(interface.at[-1])]}`"
        yield ("action",), f"a bridge can reject only what comes in by a link: give the `link` and {way}"


def _form_faults(rule: Rule) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what does not go together in a rule."""
    match = rule.match
    if rule.direction is not None and rule.link is None:
        yield ("direction",), "a direction is one of a link: give the `link`"
    elif rule.direction is not None and rule.action in _ROUTED:
        which = "what leaves" if rule.action == "nat" else "what comes in"
        yield ("direction",), f"`{rule.action}` is always about {which} by the link: leave `direction` out"
    if rule.action == "limit" and rule.rate is None:
        yield (), "`limit` needs a `rate`: what is above it is dropped"
    for key in ("rate", "burst"):
        if rule.action != "limit" and getattr(rule, key) is not None:
            yield (key,), f"`{key}` is for `action: limit`"
    if match.protocol == "udp" and (match.subtype or match.packet or rule.action in ("strip", "corrupt")):
        yield ("match", "protocol"), "UDP has neither MPTCP options nor a SYN: leave `protocol` out"
    if match.packet is not None and match.packet != "not_syn" and rule.action == "corrupt":
        yield ("match", "packet"), "there is no payload in a SYN that could be corrupted"
    for key in ("source", "destination"):
        if (given := getattr(match, key)) is not None and (problem := _network(given)):
            yield ("match", key), problem
    if rule.window is not None and rule.window[0] >= rule.window[1]:
        begin, end = rule.window
        yield ("window",), f"the window ends at {end:g} s, not after {begin:g} s, when it begins"


def _network(given: str) -> str:
    try:
        ip_network(given)
    except ValueError as e:
        return f"{given!r} is not an address or a network: {e}"
    return ""
