"""Role `amt_relay`: multicast for gateways, through a tunnel to each of them (RFC 7450, an AMT relay)."""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from testbed import features
from testbed.drivers.amt import MOST_TUNNELS, PORT, AmtAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.nodes.amt_gateway import CLASH, Driver, begun, bounced, brought, driver, ends, messages
from testbed.nodes.place import Place, named
from testbed.nodes.role import Brought, Role
from testbed.steps import Configure, Request, Step

# Least ms between two errors to one host (ip-sysctl; net/ipv4/icmp.c: icmp_sk_init); needed fragmentation is exempt.
_ICMP_RATE, _ICMP_RATE_USUAL, _ICMP_NEVER = "net.ipv4.icmp_ratelimit", 1000, 10**9


class AmtRelay(Role):
    """A relay's pseudo-interface: it sends multicast packets to every gateway that has asked for their group."""

    called: ClassVar[str] = "an AMT relay"

    max_tunnels: int = Field(16, ge=1, le=MOST_TUNNELS, description="Gateways at most")
    interface: str | None = Field(None, description="Towards the gateways; planned when left out")
    name: str = Field("amt0", description="The pseudo-interface")
    driver: Driver = Field("auto", description="auto is the kernel's")
    port: int = Field(PORT, ge=1, le=65535, description="UDP port")

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that this role needs."""
        return (driver(self.driver),)

    def interfaces(self, forwards: bool) -> tuple[Brought, ...]:
        """Return the pseudo-interface, without addresses: it sends only what is routed into it, and queries."""
        return (brought(self.name, ()),)

    def faults(self, place: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (path below this role, sentence) for each fault of this node alone; `tunnels` checks both ends."""
        yield from named(self.name, place, CLASH)
        if any(i.port for i in place.interfaces if i.name == self.name):
            yield (), f"{self.name} cannot be a port of a bridge: a relay routes multicast into it"

    def steps(self, place: Place) -> Iterator[Step]:
        """Yield the pseudo-interface."""
        tunnel, own = ends(place, self.name)
        add = AmtAdd(
            name=self.name,
            mac=own.mac,
            mode="relay",
            dev=tunnel.dev,
            local=tunnel.local,
            relay_port=self.port,
            max_tunnels=self.max_tunnels,
        )
        yield from (Configure(place.node, r) for r in begun(place, own, add))

    def restart(self, place: Place) -> Iterator[Request]:
        """Yield the pseudo-interface down and up.

        While it is down, a few ms, no ICMP error is sent for a Request: on each a gateway of the driver sends the next
        at once, until it has none left and does nothing for half a minute (amt_err_lookup).
        """
        yield SysctlSet(_ICMP_RATE, str(_ICMP_NEVER))
        yield from bounced(self.name)
        yield SysctlSet(_ICMP_RATE, str(place.sysctl.get(_ICMP_RATE, _ICMP_RATE_USUAL)))

    def loose(self) -> bool:
        """Say so: the way of multicast need not be the way back."""
        return True

    def excused(self, restarted: bool) -> tuple[str, ...]:
        """Return the counters of its own messages."""
        return messages(self.name, restarted)
