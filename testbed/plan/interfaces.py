"""Steps that configure interfaces: radios, addresses, and when each comes up (pure)."""

from __future__ import annotations

from collections.abc import Iterator

from testbed.drivers.hwsim import RadioAdd
from testbed.drivers.link import (
    MTU,
    AddressAdd,
    AutoAddressOff,
    LinkSet,
    Silence,
)
from testbed.drivers.nl80211 import ChannelSet, CountrySet, FragmentationSet, WiphyMove, WlanAdd
from testbed.drivers.sysctl import SysctlSet
from testbed.nodes.place import Interface
from testbed.plan.addresses import link_local
from testbed.plan.network import Network
from testbed.steps import LAB, Configure, Step, Wait

_MANY = 64  # nodes on a segment, or ports of a bridge
REPORTS = "20"  # ms: a whole number of ticks whatever a kernel has of them (100, 250, 300 or 1000 a second)


def radios(net: Network) -> Iterator[Step]:
    """Yield radios and their interfaces, and one monitor a channel that counts the frames on the medium.

    Radios are made in the lab's own namespace, which decides which radios hear them, and then moved to their nodes.
    """
    for country in dict.fromkeys(bss.country for bss in net.air):
        yield Configure(LAB, CountrySet(country))
    for name, node in net.topology.nodes.items():
        for i in net.interfaces[name]:
            if i.kind != "wlan":
                continue
            own = node.roles()[str(i.at[-1])].radio(net.place(name))
            assert own is not None
            radio = f"{name}-{i.name}"
            yield Configure(LAB, RadioAdd(radio, own.mlo))
            yield Configure(LAB, WiphyMove(radio, name))
            yield Configure(name, FragmentationSet(radio))
            yield Configure(name, WlanAdd(radio, i.name, own.mode, i.mac))
    for name, freq in net.ears.items():
        yield Configure(LAB, RadioAdd(name, mlo=False))
        yield Configure(LAB, WlanAdd(name, name, "monitor"))
        yield Configure(LAB, LinkSet(name, up=True))
        yield Configure(LAB, ChannelSet(name, freq))


def configured(net: Network) -> Iterator[Step]:
    """Yield MTUs, addresses and the interfaces up."""
    for name, interfaces in net.interfaces.items():
        yield Configure(name, LinkSet("lo", up=True))
        for i in interfaces:
            if i.kind == "wlan":
                yield from _wlan(net, i)
            if i.kind != "veth":
                continue
            if not i.port:
                yield from _enabled(net, i)
                yield Configure(name, AutoAddressOff(i.name))  # before an MTU below 1280 takes IPv6 off the interface
            if i.mtu != MTU:
                yield Configure(name, LinkSet(i.name, mtu=i.mtu))
            if i.port:
                continue
            for address in _addresses(i):
                yield Configure(name, address)
            yield Configure(name, LinkSet(i.name, up=True))
        for i in (i for i in interfaces if i.kind == "bridge"):
            yield from _enabled(net, i)
            yield Configure(name, AutoAddressOff(i.name))
            for address in _addresses(i):
                yield Configure(name, address)


def bridges(net: Network) -> Iterator[Step]:
    """Yield bridges that come up, after all that they join: each port that comes to a running one costs more.

    A node reports the groups of its addresses as soon as it is up, a few times, REPORTS and two ticks (20 ms) at
    most apart (net/ipv6/mcast.c: mld_ifc_start_work). A large bridge would copy each report to everybody, and what
    the processors' backlogs have no room for would be lost, including the first packets of others.
    """
    found = [(name, switch.name) for name, switch in net.switches.items()]
    for name, bridge in found if 6 in net.families else ():
        if sum(i.port for i in net.interfaces[name]) > _MANY:
            yield Wait(name, Silence(bridge), steady=0.06, inline=True)
    for name, bridge in found:
        yield Configure(name, LinkSet(bridge, up=True))


def _enabled(net: Network, i: Interface) -> Iterator[Step]:
    """Yield IPv6 for an interface of a bridging node that is not a port: IPv6 is off there by default."""
    if i.node in net.switches and 6 in net.families:
        yield Configure(i.node, SysctlSet(f"net.ipv6.conf.{i.name.replace('.', '/')}.disable_ipv6", "0"))


def _wlan(net: Network, i: Interface) -> Iterator[Step]:
    """Yield a wireless interface that is up: hostapd and wpa_supplicant find it as they leave it.

    They may take it down and up again, and IPv6 addresses stay only if told so; the link-local one comes back by
    itself, without duplicate address detection, and nobody asks for routers.
    """
    if i.mtu != MTU:
        yield Configure(i.node, LinkSet(i.name, mtu=i.mtu))
    if not i.port:
        if 6 in net.families:
            yield from _enabled(net, i)
            conf = f"net.ipv6.conf.{i.name.replace('.', '/')}"
            for key, value in (("accept_dad", 0), ("router_solicitations", 0), ("keep_addr_on_down", 1)):
                yield Configure(i.node, SysctlSet(f"{conf}.{key}", str(value)))
        yield Configure(i.node, LinkSet(i.name, up=True))
        for address in i.addresses:
            yield Configure(i.node, AddressAdd(address, i.name))


def _addresses(interface: Interface) -> Iterator[AddressAdd]:
    if any(":" in a for a in interface.addresses):
        # Routers send neighbour solicitations from it (net/ipv6/ndisc.c: ndisc_send_ns).
        yield AddressAdd(link_local(interface.mac), interface.name)
    for address in interface.addresses:
        yield AddressAdd(address, interface.name)


def link_addresses(net: Network, node: str, ifname: str) -> list[AddressAdd]:
    """Return the IPv6 addresses of an interface, which the kernel drops with the link (addrconf.c)."""
    return [a for a in _addresses(net.named[node, ifname][0]) if ":" in a.address]


def crowded(net: Network, i: Interface) -> bool:
    """Say whether a frame to all that leaves by an interface has many receivers."""
    return i.kind == "veth" and not i.port and len(net.segments[i.segment]) > _MANY
