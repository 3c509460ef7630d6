"""Node: a network namespace. The fields of `Node` are the registry of roles."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, cached_property
from typing import Annotated, Any, Self, get_args

from pydantic import BeforeValidator, ConfigDict, Field

from testbed.nodes.access_point import AccessPoint
from testbed.nodes.amt_gateway import AmtGateway
from testbed.nodes.amt_relay import AmtRelay
from testbed.nodes.bridge import Bridge
from testbed.nodes.middlebox import Middlebox
from testbed.nodes.mptcp import Mptcp
from testbed.nodes.place import MADE
from testbed.nodes.role import Brought, Role, Switch
from testbed.nodes.router import Router
from testbed.nodes.service import Service
from testbed.nodes.station import Station
from testbed.spec import Spec
from testbed.units import Address, Argv, Host, interface_of


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


class Route(Spec):
    """A static route: `to` is a network or `default`, each `via` an address on a connected network."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["via"]}, {"required": ["dev"]}]})

    to: Address = Field(description="A network, or `default`")
    via: Annotated[tuple[Host, ...], BeforeValidator(_listed, json_schema_input_type=Host | list[Host])] = Field(
        (), max_length=64, description="The next router; a list spreads flows over several"
    )
    metric: int | None = Field(None, ge=1, le=2**31 - 1, description="Of routes to one network, the lowest counts")
    dev: str | None = Field(None, description="The interface; without `via`, the network is on its link")

    def hops(self) -> tuple[str, ...]:
        """Return the next routers; "" for a network on the link of `dev`."""
        return self.via or ("",)


class Made(Spec):
    """An interface that the node's `commands` make, and the addresses that they give it."""

    addresses: tuple[Address, ...] = Field((), description="address/length of each")

    def brought(self, name: str) -> Brought:
        """Return it as a part of the network; interfaces that `commands` make in one network are joined."""
        with suppress(ValueError):
            if self.addresses:
                return Brought(name, MADE, self.addresses, medium=str(interface_of(self.addresses[0]).network))
        return Brought(name, MADE, self.addresses)


class Node(Spec):
    """A node's roles and settings; a node without any is a plain host."""

    bridge: Bridge | None = None
    router: Router | None = None
    access_point: AccessPoint | None = None
    station: Station | None = None
    mptcp: Mptcp | None = None
    middlebox: Middlebox | None = None
    amt_gateway: AmtGateway | None = None
    amt_relay: AmtRelay | None = None
    routes: tuple[Route, ...] | None = Field(
        None, description="Static routes in place of the planned ones; an empty list is none"
    )
    sysctl: dict[str, str | int] = Field(
        {}, description="Kernel parameters of the namespace, such as net.ipv4.tcp_sack"
    )
    interfaces: dict[str, Made] = Field(
        {}, max_length=1000, description="Interfaces that `commands` make: they run before routes, and are awaited"
    )
    services: dict[str, Service] = Field(
        {}, max_length=100, description="Programs that run as long as the lab, by name: servers, routing daemons"
    )
    commands: tuple[Argv, ...] = Field((), description="Programs run once the node is configured, as argv lists")

    @cached_property
    def _roles(self) -> Mapping[str, Role]:
        if not (stated := self.model_fields_set):  # as of most hosts
            return {}
        return {name: role for name in ROLES if name in stated and (role := getattr(self, name)) is not None}

    def __copy__(self) -> Self:
        """Return a copy, whose roles may become others (`model_copy(update=...)`)."""
        made = super().__copy__()
        made.__dict__.pop("_roles", None)
        return made

    def roles(self) -> Mapping[str, Role]:
        """Return the roles that this node has, by field name, in the order of the fields."""
        return self._roles  # kept: planning asks this many times of each node

    def started(self) -> Mapping[str, Role]:
        """Return the roles in the order in which they start."""
        roles = self.roles()
        return dict(sorted(roles.items(), key=lambda pair: rank(pair[0]))) if len(roles) > 1 else roles

    def brought(self) -> Iterator[tuple[str, Brought]]:
        """Yield (role, interface) of every interface that a role brings."""
        roles = self.started()
        forwards = any(role.forwards() for role in roles.values())
        yield from ((name, own) for name, role in roles.items() for own in role.interfaces(forwards))
        yield from (("interfaces", made.brought(name)) for name, made in self.interfaces.items())

    def switch(self) -> Switch | None:
        """Return the Ethernet switch of the node."""
        return next((s for role in self.roles().values() if (s := role.switch()) is not None), None)


def _kinds() -> dict[str, type[Role]]:
    classes = {name: get_args(field.annotation) for name, field in Node.model_fields.items()}
    roles = {n: [k for k in kinds if isinstance(k, type) and issubclass(k, Role)] for n, kinds in classes.items()}
    return {name: kinds[0] for name, kinds in roles.items() if kinds}


ROLES = _kinds()  # every field of a node that is a role


@cache
def rank(role: str) -> int:
    """Return how many roles start one after another before this one."""
    return max((rank(other) + 1 for other in ROLES[role].after), default=0)


RESTARTING = tuple(sorted((n for n, kind in ROLES.items() if kind.restart is not Role.restart), key=rank))


def called(role: str) -> str:
    """Return what a node with a role is in a sentence."""
    return ROLES[role].called or f"a node with `{role}`"


def figured(owner: str) -> str:
    """Return the role whose figures are named NODE.OWNER.*, "" when there is none."""
    return next((name for name, kind in ROLES.items() if owner in (name, *kind.figures)), "")
