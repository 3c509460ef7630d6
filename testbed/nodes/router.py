"""Role `router`: the node forwards IPv4 and IPv6 (RFC 1812, RFC 8200), and multicast by static (S,G) routes."""

from collections.abc import Iterator

from pydantic import Field

from testbed.drivers import smcroute
from testbed.drivers.sysctl import SysctlSet
from testbed.features import MROUTE, MROUTE6, SMCROUTE, Feature
from testbed.nodes.place import Place
from testbed.nodes.role import Role
from testbed.steps import Configure, Step


class Router(Role):
    """An IP router; its routes are planned (`routing: static`) or stated (`routes:`)."""

    multicast: bool = Field(False, description="Forward multicast by static routes, planned from the workloads")

    def requires(self) -> tuple[Feature, ...]:
        """Return the features that this role needs."""
        return (SMCROUTE, MROUTE, MROUTE6) if self.multicast else ()

    def faults(self, place: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield (path below this role, sentence) for each fault."""
        if not self.multicast:
            return
        names = _between(place)
        if len(names) > smcroute.MOST:
            yield (), f"Linux forwards multicast between at most {smcroute.MOST} interfaces; this node has {len(names)}"
        for name in filter(smcroute.unfit, names):
            yield (
                (),
                f"smcroute.conf(5) cannot name the interface {name!r}: use letters, digits, _ . and - only",
            )

    def forwards(self) -> bool:
        """Say that it does."""
        return True

    def routes_multicast(self) -> bool:
        """Say whether it does."""
        return self.multicast

    def steps(self, place: Place) -> Iterator[Step]:
        """Yield the global forwarding sysctls: programs read these, and per-device ones would leave them 0."""
        if 4 in place.families:
            yield Configure(place.node, SysctlSet("net.ipv4.ip_forward", "1"))
        if 6 in place.families:
            yield Configure(place.node, SysctlSet("net.ipv6.conf.all.forwarding", "1"))

    def forward(self, place: Place, entries: tuple[smcroute.Entry, ...]) -> Iterator[Step]:
        """Yield the steps that make a multicast router forward by these routes."""
        names = _between(place)
        if self.multicast and names:
            # An AMT gateway only asks its relay for groups with a member on its interface: this router joins them.
            tunnels = tuple(i.name for i in place.interfaces if i.kind == "amt")
            yield from smcroute.steps(place.node, names, entries, place.families, tunnels)


def _between(place: Place) -> tuple[str, ...]:
    """Return the interfaces that multicast is forwarded between."""
    return tuple(i.name for i in place.interfaces if not i.port and (i.addresses or i.kind == "amt"))
