"""Role `bridge`: the node is an Ethernet switch (IEEE 802.1D) between its ports."""

from collections.abc import Iterator

from pydantic import Field

from testbed.drivers.link import BRIDGE_PORTS
from testbed.drivers.sysctl import SysctlSet
from testbed.features import BRIDGE, Feature
from testbed.nodes.place import Place, misnamed
from testbed.nodes.role import Brought, Role, Switch
from testbed.steps import Configure, Step
from testbed.units import Address, Time


class Bridge(Role):
    """A bridge: its ports are all interfaces of the node unless listed, and it is itself the interface `name`."""

    name: str = Field("br0", description="The bridge's own interface name")
    ports: tuple[str, ...] | None = Field(None, description="Interfaces that are ports; all when left out")
    mcast_snooping: bool = Field(False, description="IGMP and MLD snooping")
    stp: bool = Field(False, description="Spanning tree protocol (IEEE 802.1D); `up` waits until ports forward")
    forward_delay: Time | None = Field(
        None, description="With stp: how long a port listens, and again how long it learns, before it forwards; 15s"
    )
    addresses: tuple[Address, ...] | None = Field(
        None, description="Of the bridge itself; planned where the node is a router too"
    )

    def requires(self) -> tuple[Feature, ...]:
        """Return the features that this role needs."""
        return (BRIDGE,)

    def faults(self, place: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (path below this role, sentence) for each fault."""
        for n, port in enumerate(self.ports or ()):
            if place.interface(port) is None:
                yield ("ports", n), place.lacks(port)
        count = sum(i.port for i in place.interfaces)
        if count > BRIDGE_PORTS:
            yield (
                (),
                f"{place.node} has {count} ports, but a Linux bridge takes at most {BRIDGE_PORTS}: use several "
                "bridges, with routers between them",
            )
        if self.forward_delay is not None and not self.stp:
            yield ("forward_delay",), "a port waits only for the spanning tree: add `stp: true`, or leave this out"
        elif self.forward_delay is not None and not 2 <= self.forward_delay <= 30:
            yield ("forward_delay",), f"it must be from 2s to 30s (IEEE 802.1D), and not {self.forward_delay:g}s"
        if problem := misnamed(self.name):
            yield ("name",), problem
        if any(i.name == self.name and i.kind != "bridge" for i in place.interfaces):
            yield ("name",), f"{place.node} already has an interface {self.name}: give the bridge another name"

    def interfaces(self, forwards: bool) -> tuple[Brought, ...]:
        """Return the bridge's own interface: it has addresses if the file says so, or on a router."""
        placed = forwards or self.addresses is not None
        return (Brought(self.name, "bridge", self.addresses, placed=placed),)

    def switch(self) -> Switch:
        """Return the switch: the plan makes it together with links, whose order decides the speed."""
        return Switch(self.name, self.ports, self.mcast_snooping, self.stp, self.forward_delay)

    def first(self, place: Place) -> Iterator[Step]:
        """Yield one write before its ports exist: a switch port has no addresses and sends nothing of its own."""
        yield Configure(place.node, SysctlSet("net.ipv6.conf.default.disable_ipv6", "1"))
