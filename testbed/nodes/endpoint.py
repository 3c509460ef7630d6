"""An MPTCP endpoint in the file: an address that the path manager uses, with its ID and flags (ip-mptcp(8))."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address, ip_address
from itertools import count
from typing import Literal

from pydantic import Field

from testbed.drivers.mptcp import EndpointAdd
from testbed.nodes.place import Place
from testbed.spec import Spec
from testbed.units import Host

Flag = Literal["subflow", "signal", "backup", "fullmesh", "laminar"]
JOINING: frozenset[Flag] = frozenset({"subflow", "fullmesh", "laminar"})  # these open subflows from the address
MOST = 255  # net/mptcp/protocol.h: MPTCP_PM_MAX_ADDR_ID, the IDs that an address option can carry


class Endpoint(Spec):
    """An address that the path manager uses, given by its interface or as one address."""

    interface: str | None = Field(None, description="Each of its addresses; with `address`, where that one is used")
    address: Host | None = None
    flags: tuple[Flag, ...] = Field(("subflow",))
    port: int | None = Field(None, ge=1, le=65535, description="Announce this port as well (signal only)")
    id: int | None = Field(
        None, ge=0, le=MOST, description="Address ID; counted from 1 if left out, and 0 only in events that remove it"
    )
    dev: bool = Field(True, description="Bind its subflows to its interface; false leaves the way to the routes")


def unmapped(host: str) -> str:
    """Return the IPv4 address of an IPv4-mapped IPv6 one (RFC 4291, 2.5.5.2), any other as it is."""
    address = ip_address(host)
    return str(address.ipv4_mapped or host) if isinstance(address, IPv6Address) else host


def version(host: str) -> int:
    """Return the version of the packets that an address is for."""
    return 6 if ":" in unmapped(host) else 4


def addresses(endpoint: Endpoint, place: Place) -> list[tuple[str, str]]:
    """Return (address, interface) for each address of an endpoint, "" without an interface."""
    if endpoint.address is None:
        found = next((i for i in place.interfaces if i.name == endpoint.interface), None)
        return [(host, found.name if endpoint.dev else "") for host in found.hosts()] if found else []
    host = unmapped(endpoint.address)
    own = next((i.name for i in place.interfaces if host in i.hosts()), "")
    return [(endpoint.address, (endpoint.interface or own) if endpoint.dev else "")]


def planned(endpoints: Sequence[Endpoint], place: Place) -> tuple[EndpointAdd, ...]:
    """Return every endpoint with its ID: where none is stated, they count from 1 in the order of the file."""
    pairs = [(endpoint, address, dev) for endpoint in endpoints for address, dev in addresses(endpoint, place)]
    stated = {e.id for e, _, _ in pairs}
    free = (n for n in count(1) if n not in stated)
    return tuple(
        EndpointAdd(address, next(free) if e.id is None else e.id, e.flags, dev, e.port or 0)
        for e, address, dev in pairs
    )


def foreign(endpoints: Sequence[Endpoint], place: Place) -> Iterator[tuple[int, str]]:
    """Yield the number and address of each endpoint whose address is not one of its node."""
    own = {host for i in place.interfaces for host in i.hosts()}
    for n, endpoint in enumerate(endpoints):
        address = endpoint.address
        if address is not None and unmapped(address) not in own and not ip_address(address).is_link_local:
            yield n, address


def wrong(endpoint: Endpoint, place: Place) -> tuple[str, str] | None:
    """Return the key and what is wrong with an endpoint that is added or changed."""
    if problem := unnamed(endpoint, place):
        return problem
    flags = set(endpoint.flags)
    # net/mptcp/pm_kernel.c: mptcp_pm_nl_add_addr_doit refuses these two
    if {"signal", "fullmesh"} <= flags:
        return "flags", "the kernel refuses endpoints with both `signal` and `fullmesh`: leave one of them out"
    if endpoint.port is not None and "signal" not in flags:
        return "port", "only `signal` endpoints announce a port: add `flags: [signal]`, or leave the port out"
    if endpoint.id == 0:
        return "id", "ID 0 is that of the first subflow's address, which no endpoint can have: write 1 to 255"
    return None


def unnamed(endpoint: Endpoint, place: Place) -> tuple[str, str] | None:
    """Return the key and what is wrong with the addresses of an endpoint."""
    if endpoint.interface is None and endpoint.address is None:
        return "", "an endpoint needs an `interface` or an `address`; this one has neither"
    if endpoint.interface is not None and place.interface(endpoint.interface) is None:
        return "interface", place.lacks(endpoint.interface)
    if endpoint.address is not None:
        try:
            address = ip_address(endpoint.address)
        except ValueError:
            return "address", f"{endpoint.address!r} is not an IP address"
        own = [i.name for i in place.interfaces if unmapped(endpoint.address) in i.hosts()]
        if address.is_link_local and address.version == 6 and endpoint.interface is None:
            return "address", f"{endpoint.address} is an address of one link: name its `interface` as well"
        if own and endpoint.interface is not None and endpoint.interface not in own:
            return "interface", f"{endpoint.address} is an address of {place.node}:{own[0]}: leave `interface` out"
    elif not addresses(endpoint, place):
        return "interface", f"{place.node}:{endpoint.interface} has no address"
    elif endpoint.id is not None and len(addresses(endpoint, place)) > 1:
        many = ", ".join(host for host, _ in addresses(endpoint, place))
        return "id", f"one ID is for one address, and {endpoint.interface} has {many}: write `address`"
    return None
