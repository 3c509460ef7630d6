"""Role `mptcp`: an MPTCP host (RFC 8684) with the in-kernel path manager (ip-mptcp(8)), or one in user space."""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from testbed import features
from testbed.drivers.mptcp import LIMIT, EndpointAdd, LimitsSet, PathManagerHas
from testbed.drivers.sysctl import SysctlSet
from testbed.nodes import path_manager
from testbed.nodes.one_path import Flow, Side, one_path
from testbed.nodes.path_manager import PathManager
from testbed.nodes.place import Place
from testbed.nodes.role import UP, Role, RoleFault
from testbed.spec import Spec
from testbed.steps import Configure, Step, Wait
from testbed.units import Host, Word

Flag = Literal["subflow", "signal", "backup", "fullmesh", "laminar"]
# What makes the kernel's own path manager do its work; before Linux 6.15 pm_type alone.
_OWN = {"net.mptcp.enabled": "1", "net.mptcp.pm_type": "0", "net.mptcp.path_manager": "kernel"}
_SETS = re.compile(r"\b(net[./]mptcp[./](?:enabled|pm_type|path_manager))=[\"']?(\w+)")
_WRITES = re.compile(r"\b(\w+)[\"']?\s*>\s*/proc/sys/(net/mptcp/(?:enabled|pm_type|path_manager))\b")
_LIMITS = re.compile(r"\bmptcp\s+limits?\s+set\b")
_BY_HAND = re.compile(r"\bmptcp\b|\broute\b|\brule\b")
_ENDPOINT = re.compile(r"\bmptcp\s+endpoints?\s+(?:del|delete|change|replace|flush)\b")
JOINING: frozenset[Flag] = frozenset({"subflow", "fullmesh", "laminar"})  # these open subflows from the address
Count = Annotated[int, Field(ge=0, le=LIMIT)]


class Limits(Spec):
    """Additional subflows of a connection, and accepted ADD_ADDR options (0-8; the kernel's defaults are 2 and 0)."""

    subflows: Count = LIMIT
    add_addr_accepted: Count = LIMIT


class Endpoint(Spec):
    """An address of this host that the path manager uses, given by its interface or as one address."""

    interface: str | None = None
    address: Host | None = None
    flags: tuple[Flag, ...] = Field(("subflow",))
    port: int | None = Field(None, ge=1, le=65535, description="Announce this port as well (signal only)")


class Mptcp(Role):
    """Path manager, limits, endpoints and the net.mptcp sysctls of one host."""

    called: ClassVar[str] = "an MPTCP host"
    figures: ClassVar[tuple[str, ...]] = ("subflow", "path")

    limits: Limits = Field(default_factory=Limits)
    endpoints: tuple[Endpoint, ...] = Field(())
    path_manager: PathManager = Field(None, description="`kernel`, `userspace`, or a policy or rules in user space")
    scheduler: Word | None = Field(None, description="One of net.mptcp.available_schedulers")
    checksum_enabled: bool | None = None
    allow_join_initial_addr_port: bool | None = None
    stale_loss_cnt: int | None = Field(None, ge=0, le=2**32 - 1)
    add_addr_timeout: int | None = Field(None, ge=0, le=2**31 - 1, description="Seconds")
    close_timeout: int | None = Field(None, ge=0, le=2**31 - 1, description="Seconds")
    blackhole_timeout: int | None = Field(None, ge=0, le=2**31 - 1, description="Seconds")
    syn_retrans_before_tcp_fallback: int | None = Field(None, ge=0, le=127)

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that this role needs."""
        chosen: tuple[features.Feature, ...] = ()
        chosen += (features.scheduler(self.scheduler),) if self.scheduler is not None else ()
        chosen += (features.MPTCP_USERSPACE_PM,) if self.path_manager is not None else ()
        return (features.MPTCP, features.MPTCP_DIAG, *chosen)

    def faults(self, place: Place) -> Iterator[RoleFault]:
        """Yield (path below this role, sentence) for each fault."""
        seen: dict[str, int] = {}
        for n, endpoint in enumerate(self.endpoints):
            at = ("endpoints", n)
            problem = _wrong(endpoint, place)
            if problem:
                yield (*at, problem[0]) if problem[0] else at, problem[1]
                continue
            hosts = [address for address, _ in addresses(endpoint, place)]
            if twice := [h for h in hosts if h in seen]:
                yield at, f"item {seen[twice[0]] + 1} of `endpoints` already has the address {twice[0]}"
            seen |= dict.fromkeys(hosts, n)
        if len(seen) > LIMIT:
            why = f"the kernel keeps at most {LIMIT} (an interface counts once for each family)"
            yield ("endpoints",), f"these are {len(seen)} endpoint addresses, but {why}"
        if self.path_manager is None:
            yield from _overruled(self, place)
        else:
            for path, what in path_manager.faults(self.path_manager, place):
                yield ("path_manager", *path), what

    def steps(self, place: Place) -> Iterator[Step]:
        """Yield sysctls, limits and endpoints, and the wait that verifies them."""
        yield Configure(place.node, SysctlSet("net.mptcp.enabled", "1"))
        for name in _SYSCTLS:
            if (value := getattr(self, name)) is not None:
                yield Configure(
                    place.node,
                    SysctlSet(f"net.mptcp.{name}", str(int(value) if name != "scheduler" else value)),
                )
        endpoints = planned(self, place)
        if self.path_manager is not None:
            most = (self.limits.subflows, self.limits.add_addr_accepted)
            yield from path_manager.steps(place, path_manager.settings(self.path_manager, place, endpoints, most))
            return
        limits = LimitsSet(self.limits.subflows, self.limits.add_addr_accepted)
        yield Configure(place.node, limits)
        for endpoint in endpoints:
            yield Configure(place.node, endpoint)
        yield Wait(place.node, PathManagerHas(limits, endpoints))

    def samples(self) -> tuple[str, ...]:
        """Return that its counters and subflows are read."""
        return ("mptcp",)

    def loose(self) -> bool:
        """Say so: replies and joins leave by the interface of their address."""
        return True

    def joins(self, place: Place) -> frozenset[str]:
        """Return the addresses of endpoints that open subflows."""
        if self.path_manager is not None and (self.path_manager.rules or self.path_manager.policy == "fullmesh"):
            return frozenset(h for i in place.interfaces for h in i.hosts())
        return frozenset(e.address for e in planned(self, place) if JOINING & set(e.flags))

    def warned(self, flow: Flow, other: Role) -> Iterator[tuple[str, str, str]]:
        """Yield why a connection would stay on one path."""
        assert isinstance(other, Mptcp)
        ends = ((self, flow.client), (other, flow.server))
        busy = any(role.path_manager is not None or _BY_HAND.search(str(place.commands)) for role, place in ends)
        if not busy:  # else programs decide
            yield from one_path(flow, *(_side(role, place) for role, place in ends))


def _side(role: Mptcp, place: Place) -> Side:
    every = planned(role, place)
    opening = [e for e in every if JOINING & set(e.flags)]
    announced = [e for e in every if "signal" in e.flags]
    return Side(opening, announced, role.limits.subflows, role.limits.add_addr_accepted)


_SYSCTLS = (
    "scheduler",
    "checksum_enabled",
    "allow_join_initial_addr_port",
    "stale_loss_cnt",
    "add_addr_timeout",
    "close_timeout",
    "blackhole_timeout",
    "syn_retrans_before_tcp_fallback",
)


def planned(role: Mptcp, place: Place) -> tuple[EndpointAdd, ...]:
    """Return every endpoint with its ID: these count from 1 in the order of the file, each family separately."""
    pairs = [(endpoint, address, dev) for endpoint in role.endpoints for address, dev in addresses(endpoint, place)]
    return tuple(EndpointAdd(a, n, e.flags, dev, e.port or 0) for n, (e, a, dev) in enumerate(pairs, start=1))


def addresses(endpoint: Endpoint, place: Place) -> list[tuple[str, str]]:
    """Return (address, interface) for each address of an endpoint."""
    for interface in place.interfaces:
        if endpoint.address is not None and endpoint.address in interface.hosts():
            return [(endpoint.address, interface.name)]
        if endpoint.address is None and interface.name == endpoint.interface:
            return [(host, interface.name) for host in interface.hosts()]
    return []


def _wrong(endpoint: Endpoint, place: Place) -> tuple[str, str] | None:
    if (endpoint.interface is None) == (endpoint.address is None):
        both = "this one has both" if endpoint.address else "this one has neither"
        return "", f"an endpoint needs either an `interface` or an `address`; {both}"
    if endpoint.interface is not None and place.interface(endpoint.interface) is None:
        return "interface", place.lacks(endpoint.interface)
    if endpoint.address is not None:
        try:
            ip_address(endpoint.address)
        except ValueError:
            return "address", f"{endpoint.address!r} is not an IP address"
        if not addresses(endpoint, place):
            own = ", ".join(h for i in place.interfaces for h in i.hosts()) or "none"
            return "address", f"{place.node} does not have the address {endpoint.address} (it has {own})"
    flags = set(endpoint.flags)
    # net/mptcp/pm_kernel.c: mptcp_pm_nl_add_addr_doit refuses these two
    if {"signal", "fullmesh"} <= flags:
        return "flags", "the kernel refuses endpoints with both `signal` and `fullmesh`: leave one of them out"
    if endpoint.port is not None and "signal" not in flags:
        return "port", "only `signal` endpoints announce a port: add `flags: [signal]`, or leave the port out"
    if not addresses(endpoint, place):
        return "interface", f"{place.node}:{endpoint.interface} has no address"
    return None


def _overruled(role: Mptcp, place: Place) -> Iterator[RoleFault]:
    """Yield what the node says elsewhere against this role: `up` would wait for the role's state in vain."""
    for key, value in place.sysctl.items():
        name = key.replace("/", ".")
        if name in _OWN and str(value).strip() != _OWN[name]:
            yield (UP, "sysctl", key), f"{name} is {_OWN[name]} on an MPTCP host: the key `mptcp` decides it"
    for n, argv in enumerate(place.commands):
        text = " ".join(argv)
        at = (UP, "commands", n)
        for name, value in (*_SETS.findall(text), *((name, value) for value, name in _WRITES.findall(text))):
            if _OWN.get(name := name.replace("/", "."), value) != value:
                yield at, f"this sets {name} to {value}, but it is {_OWN[name]} on an MPTCP host"
        if _LIMITS.search(text):
            yield at, "this changes the limits of the path manager: give them as `mptcp: {limits: {...}}`"
        if role.endpoints and (found := _ENDPOINT.search(text)):
            cure = "change `mptcp: {endpoints: [...]}`, or do it in an event"
            yield at, f"`{found[0]}` changes endpoints that `up` waits for: {cure}"
