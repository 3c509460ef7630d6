"""Role `router`: the node forwards IPv4 and IPv6 (RFC 1812, RFC 8200)."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.drivers.sysctl import SysctlSet
from testbed.features import Feature
from testbed.nodes.place import Place
from testbed.spec import Spec
from testbed.steps import Configure, Step


class Router(Spec):
    """An IP router; its routes are planned (`routing: static`) or stated (`routes:`)."""

    def requires(self) -> tuple[Feature, ...]:
        """Return what the kernel must offer."""
        return ()

    def faults(self, here: Place) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Yield what can't work."""
        return iter(())

    def steps(self, here: Place) -> Iterator[Step]:
        """Yield forwarding as the sysctls that everybody reads; per-device flags alone would leave these 0."""
        if 4 in here.families:
            yield Configure(here.node, SysctlSet("net.ipv4.ip_forward", "1"))
        if 6 in here.families:
            yield Configure(here.node, SysctlSet("net.ipv6.conf.all.forwarding", "1"))
