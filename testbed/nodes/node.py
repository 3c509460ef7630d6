"""Node: a network namespace. The fields of `Node` are the registry of roles."""

from pydantic import Field

from testbed.nodes.access_point import AccessPoint
from testbed.nodes.amt_gateway import AmtGateway
from testbed.nodes.amt_relay import AmtRelay
from testbed.nodes.bridge import Bridge
from testbed.nodes.mptcp import Mptcp
from testbed.nodes.place import Role
from testbed.nodes.router import Router
from testbed.nodes.station import Station
from testbed.spec import Spec
from testbed.units import Address, Argv, Host


class Route(Spec):
    """A static route; `via` is an address on a connected network, `to` a network or `default`."""

    to: Address
    via: Host


class Node(Spec):
    """A node's roles and settings; a node without any is a plain host."""

    bridge: Bridge | None = None
    router: Router | None = None
    access_point: AccessPoint | None = None
    station: Station | None = None
    mptcp: Mptcp | None = None
    amt_gateway: AmtGateway | None = None
    amt_relay: AmtRelay | None = None
    routes: tuple[Route, ...] = Field((), description="Static routes; any here replace the planned ones")
    sysctl: dict[str, str | int] = Field(
        {}, description="Kernel parameters of the namespace, such as net.ipv4.tcp_sack"
    )
    commands: tuple[Argv, ...] = Field((), description="Programs run once the node is configured, as argv lists")

    def roles(self) -> dict[str, Role]:
        """Return the roles that this node has, by field name."""
        found: dict[str, Role | None] = {"bridge": self.bridge, "router": self.router}
        found |= {"access_point": self.access_point, "station": self.station, "mptcp": self.mptcp}
        found |= {"amt_relay": self.amt_relay, "amt_gateway": self.amt_gateway}
        return {name: role for name, role in found.items() if role is not None}
