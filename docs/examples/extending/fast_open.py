"""Role `fast_open`: TCP connections whose first packet has data already (TCP Fast Open, RFC 7413)."""

from collections.abc import Iterator
from typing import ClassVar

from testbed.drivers.sysctl import SysctlSet
from testbed.drivers.tcp_metrics import Forget
from testbed.nodes.place import Place
from testbed.nodes.role import Counter, Role, RoleFault
from testbed.steps import Configure, Request, Step

_CLIENT, _SERVER = 1, 2  # bits of net.ipv4.tcp_fastopen (Documentation/networking/ip-sysctl)
_NETSTAT = "/proc/net/netstat"


class FastOpen(Role):
    """A host that may send data with a SYN (`client`) and take it (`server`), for programs that ask for it."""

    called: ClassVar[str] = "a host with TCP Fast Open"

    client: bool = True
    server: bool = True

    def faults(self, place: Place) -> Iterator[RoleFault]:
        """Yield what can't work here."""
        if not any(i.addresses for i in place.interfaces):
            yield (), f"{place.node} has no address, so no TCP connection can begin or end there"

    def steps(self, place: Place) -> Iterator[Step]:
        """Yield the parameter that allows it."""
        allowed = self.client * _CLIENT | self.server * _SERVER
        yield Configure(place.node, SysctlSet("net.ipv4.tcp_fastopen", str(allowed)))

    def restart(self, place: Place) -> Iterator[Request]:
        """Yield what makes a client forget the cookies of all servers."""
        yield Forget()

    def counters(self, place: Place) -> dict[str, Counter]:
        """Return what the kernel counts (RFC 7413 section 4)."""
        return {
            "cookies": Counter(_NETSTAT, "TcpExt.TCPFastOpenCookieReqd"),
            "opened": Counter(_NETSTAT, "TcpExt.TCPFastOpenActive"),
            "accepted": Counter(_NETSTAT, "TcpExt.TCPFastOpenPassive"),
        }
