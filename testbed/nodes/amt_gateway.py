"""Role `amt_gateway`: multicast receivers behind a network without multicast routing (RFC 7450, an AMT gateway)."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from testbed import features
from testbed.drivers.amt import HEADERS, PORT, AmtAdd, RelayFound
from testbed.drivers.link import MTU, AddressAdd, AutoAddressOff, LinkSet, PortAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.errors import Unsupported
from testbed.nodes.place import Interface, Place, Tunnel, named
from testbed.nodes.role import Brought, Role
from testbed.steps import Configure, Request, Step, Wait
from testbed.units import Address

Driver = Literal["auto", "kernel", "userspace"]
CLASH = "the pseudo-interface needs a name of its own"
_WITHIN = 30.0  # s: the driver repeats a lost Relay Discovery after 5 s


class AmtGateway(Role):
    """A gateway's pseudo-interface: a port of the node's bridge, or an interface on which the node itself joins."""

    called: ClassVar[str] = "an AMT gateway"
    after: ClassVar[tuple[str, ...]] = ("amt_relay",)

    discovery: str = Field(description="The relay: a node with `amt_relay`, or node:interface")
    interface: str | None = Field(None, description="Towards the relay; planned when left out")
    name: str = Field("amt0", description="The pseudo-interface")
    driver: Driver = Field("auto", description="auto is the kernel's")
    port: int = Field(PORT, ge=1, le=65535, description="UDP port of the gateway")
    relay_port: int = Field(PORT, ge=1, le=65535, description="UDP port of the relay")
    addresses: tuple[Address, ...] | None = Field(
        None, description="Of the pseudo-interface; planned when left out, none where it is a port of a bridge"
    )

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that this role needs."""
        return (driver(self.driver),)

    def interfaces(self, forwards: bool) -> tuple[Brought, ...]:
        """Return the pseudo-interface."""
        return (brought(self.name, self.addresses),)

    def faults(self, place: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (path below this role, sentence) for each fault of this node alone; `tunnels` checks both ends."""
        yield from named(self.name, place, CLASH)
        if self.port != self.relay_port:
            why = "the kernel's gateway sends from its `port` and listens on its `relay_port`"
            yield ("port",), f"port {self.port} and relay_port {self.relay_port} differ: {why}"

    def steps(self, place: Place) -> Iterator[Step]:
        """Yield the pseudo-interface, and the wait for a relay's answer."""
        tunnel, own = ends(place, self.name)
        add = AmtAdd(
            name=self.name,
            mac=own.mac,
            mode="gateway",
            dev=tunnel.dev,
            local=tunnel.local,
            relay_port=self.relay_port,
            gateway_port=self.port,
            discovery=tunnel.discovery,
        )
        yield from (Configure(place.node, r) for r in begun(place, own, add))
        yield Wait(place.node, RelayFound(self.name, tunnel.discovery), within=_WITHIN)

    def restart(self, place: Place) -> Iterator[Request]:
        """Yield the pseudo-interface down and up."""
        return bounced(self.name)

    def loose(self) -> bool:
        """Say so: multicast comes in by the tunnel, which need not be the way back."""
        return True

    def excused(self, restarted: bool) -> tuple[str, ...]:
        """Return the counters of its own messages."""
        return messages(self.name, restarted)


def brought(name: str, stated: tuple[str, ...] | None) -> Brought:
    """Return a pseudo-interface."""
    return Brought(name, "amt", stated, MTU - HEADERS)


def bounced(name: str) -> Iterator[Request]:
    """Yield a pseudo-interface down and up: the driver forgets its tunnels as it goes down (amt.c: amt_dev_stop).

    The interface stays, and with it its place in a bridge or among the multicast interfaces, and the routes that lead
    into it.
    """
    for up in (False, True):
        yield LinkSet(name, up=up)


def messages(name: str, restarted: bool) -> tuple[str, ...]:
    """Return the counters that count AMT's messages as they are sent (drivers/net/amt.c: amt_dev_xmit).

    After a restart, what comes is not expected either.
    """
    return tuple(f"{name}.{way}_dropped" for way in (("tx", "rx") if restarted else ("tx",)))


def ends(place: Place, name: str) -> tuple[Tunnel, Interface]:
    """Return the planned tunnel of a pseudo-interface, and the interface itself."""
    tunnel, own = place.tunnel(name), place.interface(name)
    assert tunnel is not None
    assert own is not None
    return tunnel, own


def begun(place: Place, own: Interface, add: AmtAdd) -> Iterator[Request]:
    """Yield the requests that make a pseudo-interface, configure it and bring it up.

    A relay queries for MLD reports from its link-local address, and not before it has one (drivers/net/amt.c:
    amt_build_mld_gq). The kernel gives it one when it comes up, here without duplicate address detection.
    """
    yield add
    if own.port:
        yield PortAdd(own.name, place.bridge)
        return
    if 6 in place.families:
        conf = f"net.ipv6.conf.{own.name.replace('.', '/')}"
        values = (("disable_ipv6", 0), ("accept_dad", 0), ("router_solicitations", 0), ("keep_addr_on_down", 1))
        for key, value in values:
            yield SysctlSet(f"{conf}.{key}", str(value))
    else:
        yield AutoAddressOff(own.name)
    for address in own.addresses:
        yield AddressAdd(address, own.name)
    yield LinkSet(own.name, up=True)


def driver(chosen: Driver) -> features.Feature:
    """Return the feature that a driver needs; raise Unsupported if this version lacks that driver."""
    if chosen == "userspace":
        raise Unsupported("this version has no AMT gateway and relay in user space; use `driver: kernel`")
    return features.AMT
