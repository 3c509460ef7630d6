"""What makes MPTCP set-ups fail although everything starts: of one host, and of both ends of a connection (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from testbed.drivers.mptcp import EndpointAdd
from testbed.nodes.endpoint import JOINING, Endpoint, foreign, unmapped
from testbed.nodes.one_path import Side
from testbed.nodes.place import Place

Warned = tuple[str, tuple[str | int, ...], str, str]  # name, path below the role, sentence, and what to do
_FILTER = re.compile(r"net[./]ipv4[./]conf[./](.+)[./]rp_filter")
_RULES = re.compile(r"\brule\b|\bvrf\b")


def of_host(endpoints: Sequence[Endpoint], place: Place) -> Iterator[Warned]:
    """Yield what is wrong with a host by itself."""
    own = ", ".join(h for i in place.interfaces for h in i.hosts()) or "none"
    for n, address in foreign(endpoints, place):
        why = f"{place.node} does not have the address {address} (it has {own})"
        cure = "correct the address, unless it is not meant to be its own"
        yield "mptcp-foreign-address", ("endpoints", n, "address"), why, cure
    for n, endpoint in enumerate(endpoints):
        if set(endpoint.flags) <= {"backup"}:
            # net/mptcp/pm_kernel.c: mptcp_pm_nl_is_backup looks at no other flag
            why = (
                "an endpoint with `backup` alone is neither joined from nor announced: it concerns first subflows only"
            )
            yield "mptcp-flags", ("endpoints", n), why, "add `subflow` on the client, or `signal` on the server"
    several = sum(bool(i.addresses) and not i.port for i in place.interfaces) > 1
    if several and (where := strict(place.sysctl)):
        why = f"{where} is 1: {place.node} drops what comes by another interface than it would leave by"
        yield "mptcp-rp-filter", (), why, "set it to 0, or leave it out: it is off on MPTCP hosts"
    joins = [e for e in endpoints if set(e.flags) & JOINING]
    if several and joins and not place.routed and not _RULES.search(str(place.commands)):
        why = f"with `routing: none` nothing makes subflows of {place.node} leave by the interface of their address"
        yield "mptcp-no-source-routes", ("endpoints",), why, "add `ip rule` and a table for each address to `commands`"


def strict(sysctl: Mapping[str, str | int]) -> str:
    """Return the parameter that makes a reverse path filter strict, "" without one."""
    return next((key for key, value in sysctl.items() if _FILTER.fullmatch(key) and str(value).strip() == "1"), "")


def of_both(
    names: tuple[str, str], sides: tuple[Side, Side], sums: tuple[bool | None, bool | None], to: str
) -> Iterator[tuple[str, str, str]]:
    """Yield what does not go together between a client and its server, which it reaches at the address `to`."""
    client, server = names
    if None not in sums and sums[0] != sums[1]:
        on, off = (client, server) if sums[0] else (server, client)
        why = f"{on} has `checksum_enabled: true` and {off} has false: checksums are used in both directions"
        yield "mptcp-checksum", why, "state the same on both sides"
    mesh = [e for e in sides[0].opening if "fullmesh" in e.flags]
    if mesh and not _other(sides[1].announced, to):
        why = f"`fullmesh` of {client} joins every address that it knows, and {server} announces none beside {to}"
        yield "mptcp-no-mesh", why, f"flag endpoints of {server} with `signal`"


def _other(announced: Sequence[EndpointAdd], to: str) -> bool:
    return any(unmapped(e.address) != to for e in announced)
