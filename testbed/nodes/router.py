"""Role `router`: the node forwards IPv4 and IPv6 (RFC 1812, RFC 8200), and multicast by static (S,G) routes."""

from collections.abc import Iterator

from pydantic import Field

from testbed.drivers import smcroute
from testbed.drivers.sysctl import SysctlSet
from testbed.features import MROUTE, MROUTE6, SMCROUTE, Feature
from testbed.nodes.place import Place
from testbed.spec import Spec
from testbed.steps import Configure, Step


class Router(Spec):
    """An IP router; its routes are planned (`routing: static`) or stated (`routes:`)."""

    multicast: bool = Field(False, description="Forward multicast by static routes, planned from the workloads")

    def requires(self) -> tuple[Feature, ...]:
        """Return what the kernel must offer."""
        return (SMCROUTE, MROUTE, MROUTE6) if self.multicast else ()

    def faults(self, here: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield what can't work."""
        if not self.multicast:
            return
        names = self.interfaces(here)
        if len(names) > smcroute.MOST:
            yield (), f"{len(names)} interfaces, and Linux forwards multicast between at most {smcroute.MOST} of a node"
        for name in filter(smcroute.unfit, names):
            yield (
                (),
                f"smcroute.conf(5) can't name the interface {name!r}: letters, digits, _ . and - only",
            )

    def interfaces(self, here: Place) -> tuple[str, ...]:
        """Return the interfaces that multicast is forwarded between."""
        return tuple(i.name for i in here.interfaces if not i.port and (i.addresses or i.kind == "amt"))

    def steps(self, here: Place) -> Iterator[Step]:
        """Yield forwarding as the sysctls that everybody reads; per-device flags alone would leave these 0."""
        if 4 in here.families:
            yield Configure(here.node, SysctlSet("net.ipv4.ip_forward", "1"))
        if 6 in here.families:
            yield Configure(here.node, SysctlSet("net.ipv6.conf.all.forwarding", "1"))

    def forward(self, here: Place, entries: tuple[smcroute.Entry, ...]) -> Iterator[Step]:
        """Yield what makes a multicast router forward by these routes."""
        names = self.interfaces(here)
        if self.multicast and names:
            # Nobody asks an AMT gateway's relay for what others want: this router does.
            tunnels = tuple(i.name for i in here.interfaces if i.kind == "amt")
            yield from smcroute.steps(here.node, names, entries, here.families, tunnels)
