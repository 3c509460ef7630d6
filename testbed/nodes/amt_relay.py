"""Role `amt_relay`: multicast for gateways, through a tunnel to each of them (RFC 7450, an AMT relay)."""

from collections.abc import Iterator

from pydantic import Field

from testbed import features
from testbed.drivers.amt import MOST_TUNNELS, PORT, AmtAdd
from testbed.nodes.amt_gateway import CLASH, Driver, begun, driver
from testbed.nodes.place import Place, named
from testbed.spec import Spec
from testbed.steps import Configure, Step


class AmtRelay(Spec):
    """A relay's pseudo-interface: it sends multicast packets to every gateway that has asked for their group."""

    max_tunnels: int = Field(16, ge=1, le=MOST_TUNNELS, description="Gateways at most")
    interface: str | None = Field(None, description="Towards the gateways; planned when left out")
    name: str = Field("amt0", description="The pseudo-interface")
    driver: Driver = Field("auto", description="auto is the kernel's")
    port: int = Field(PORT, ge=1, le=65535, description="UDP port")

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that this role needs."""
        return (driver(self.driver),)

    def faults(self, here: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (path below this role, sentence) for each fault of this node alone; `tunnels` checks both ends."""
        yield from named(self.name, here, CLASH)
        if any(i.port for i in here.interfaces if i.name == self.name):
            yield (), f"{self.name} cannot be a port of a bridge: a relay routes multicast into it"

    def steps(self, here: Place) -> Iterator[Step]:
        """Yield the pseudo-interface."""
        tunnel, own = here.tunnel(self.name), here.interface(self.name)
        assert tunnel is not None
        assert own is not None
        add = AmtAdd(
            name=self.name,
            mac=own.mac,
            mode="relay",
            dev=tunnel.dev,
            local=tunnel.local,
            relay_port=self.port,
            max_tunnels=self.max_tunnels,
        )
        yield Configure(here.node, add)
        yield from (Configure(here.node, r) for r in begun(here, own))
