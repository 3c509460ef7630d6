"""Role `mptcp`: an MPTCP host (RFC 8684) with the in-kernel path manager (ip-mptcp(8)), or one in user space."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from testbed import features
from testbed.drivers.mptcp import HIGHEST, LIMIT, LimitsSet, PathManagerHas
from testbed.drivers.sysctl import SysctlSet
from testbed.nodes import path_manager, preflight
from testbed.nodes.endpoint import JOINING, MOST, Endpoint, addresses, planned, unmapped, wrong
from testbed.nodes.one_path import Flow, Side, one_path
from testbed.nodes.path_manager import PathManager
from testbed.nodes.place import Place
from testbed.nodes.role import UP, Role, RoleFault
from testbed.spec import Spec
from testbed.steps import Configure, Step, Wait
from testbed.units import Word

# What makes the kernel's own path manager do its work; before Linux 6.15 pm_type alone.
_OWN = {"net.mptcp.enabled": "1", "net.mptcp.pm_type": "0", "net.mptcp.path_manager": "kernel"}
_SETS = re.compile(r"\b(net[./]mptcp[./](?:enabled|pm_type|path_manager))=[\"']?(\w+)")
_WRITES = re.compile(r"\b(\w+)[\"']?\s*>\s*/proc/sys/(net/mptcp/(?:enabled|pm_type|path_manager))\b")
_LIMITS = re.compile(r"\bmptcp\s+limits?\s+set\b")
_BY_HAND = re.compile(r"\bmptcp\b|\broute\b|\brule\b")
_ENDPOINT = re.compile(r"\bmptcp\s+endpoints?\s+(?:del|delete|change|replace|flush)\b")
_KERNEL = (2, 0)  # net/mptcp/pm_kernel.c: pm_nl_init_net, the limits of a new namespace
Count = Annotated[int, Field(ge=0, le=HIGHEST)]


class Limits(Spec):
    """Additional subflows of a connection, and accepted ADD_ADDR options; above 8 from Linux 7.2 on."""

    subflows: Count = LIMIT
    add_addr_accepted: Count = LIMIT


def _limits(value: Any) -> Any:
    return None if value == "kernel" else value


class Mptcp(Role):
    """Path manager, limits, endpoints and the net.mptcp sysctls of one host."""

    called: ClassVar[str] = "an MPTCP host"
    figures: ClassVar[tuple[str, ...]] = ("subflow", "path")

    limits: Annotated[Limits | None, BeforeValidator(_limits, json_schema_input_type=Literal["kernel"] | Limits)] = (
        Field(default_factory=Limits, description="`kernel` leaves what the kernel has: 2 subflows, none announced")
    )
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
        highest = max(self.most()) if self.path_manager is None else 0
        chosen += (features.mptcp_limits(highest),) if highest > LIMIT else ()
        return (features.MPTCP, features.MPTCP_DIAG, *chosen)

    def needs(self, place: Place) -> tuple[features.Feature, ...]:
        """Return what more endpoints need than every kernel keeps."""
        count = len(planned(self.endpoints, place)) if self.path_manager is None else 0
        return (features.mptcp_endpoints(count),) if count > LIMIT else ()

    def most(self) -> tuple[int, int]:
        """Return the limits of subflows and of accepted addresses."""
        return (self.limits.subflows, self.limits.add_addr_accepted) if self.limits is not None else _KERNEL

    def faults(self, place: Place) -> Iterator[RoleFault]:
        """Yield (path below this role, sentence) for each fault."""
        seen: dict[str | int, int] = {}
        for n, endpoint in enumerate(self.endpoints):
            at = ("endpoints", n)
            if problem := wrong(endpoint, place):
                yield (*at, problem[0]) if problem[0] else at, problem[1]
                continue
            hosts = [unmapped(address) for address, _ in addresses(endpoint, place)]  # the kernel takes both for one
            if twice := [h for h in hosts if h in seen]:
                yield at, f"item {seen[twice[0]] + 1} of `endpoints` already has the address {twice[0]}"
            elif endpoint.id in seen:
                yield (*at, "id"), f"item {seen[endpoint.id] + 1} of `endpoints` already has the ID {endpoint.id}"
            seen |= dict.fromkeys((*hosts, *([endpoint.id] if endpoint.id is not None else [])), n)
        if (count := sum(isinstance(key, str) for key in seen)) > MOST:
            yield ("endpoints",), f"these are {count} endpoint addresses, but an ID is at most {MOST}"
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
        endpoints = planned(self.endpoints, place)
        if self.path_manager is not None:
            yield from path_manager.steps(
                place, path_manager.settings(self.path_manager, place, endpoints, self.most())
            )
            return
        limits = LimitsSet(*self.most()) if self.limits is not None else None
        if limits is not None:
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
        return frozenset(unmapped(e.address) for e in planned(self.endpoints, place) if JOINING & set(e.flags))

    def warns(self, place: Place) -> Iterator[tuple[str, tuple[str | int, ...], str, str]]:
        """Yield what would make connections of this host stay on one path."""
        if self.path_manager is None:
            yield from preflight.of_host(self.endpoints, place)

    def warned(self, flow: Flow, other: Role) -> Iterator[tuple[str, str, str]]:
        """Yield why a connection would stay on one path."""
        assert isinstance(other, Mptcp)
        ends = ((self, flow.client), (other, flow.server))
        sides = _side(self, flow.client), _side(other, flow.server)
        sums = self.checksum_enabled, other.checksum_enabled
        busy = any(role.path_manager is not None or _BY_HAND.search(str(place.commands)) for role, place in ends)
        if not busy:  # else programs decide
            yield from one_path(flow, *sides)
            yield from preflight.of_both((flow.client.node, flow.server.node), sides, sums, flow.to)


def _side(role: Mptcp, place: Place) -> Side:
    every = planned(role.endpoints, place)
    opening = [e for e in every if JOINING & set(e.flags)]
    announced = [e for e in every if "signal" in e.flags]
    return Side(opening, announced, *role.most())


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
