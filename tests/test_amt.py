"""AMT without a kernel: requests as bytes, what the kernel tells, tunnels as planned, where multicast goes."""

from __future__ import annotations

import struct

import pytest

from testbed.drivers import amt, smcroute
from testbed.drivers.amt import Amt, AmtAdd, RelayFound
from testbed.drivers.link import LinkSet
from testbed.errors import InputError, Unsupported
from testbed.language.parsing import parse
from testbed.language.topology import Topology
from testbed.linux import wire
from testbed.loading import build
from testbed.plan import assemble, trees
from testbed.plan import lab as plan
from testbed.plan import run as schedule
from testbed.plan.network import Network
from testbed.report import doubts as validity
from testbed.steps import Configure, Wait, Write

MAC = "02:00:00:00:00:0a"
GATEWAY = AmtAdd("amt0", MAC, "gateway", "eth1", "10.0.2.1", 2268, 2268, "10.0.2.2")
RELAY = AmtAdd("amt0", MAC, "relay", "eth0", "10.0.2.2", 2300, max_tunnels=4)


class Here:
    """Stands for a namespace where what exists has index 7, and what is made gets 9."""

    def index(self, ifname: str) -> int:
        return 7

    def claim(self, ifname: str, node: str | None = None) -> int:
        return 9

    def namespace(self, node: str) -> int:
        raise AssertionError(node)

    def radio(self, name: str) -> str:
        raise AssertionError(name)

    def wiphy(self, radio: str) -> int:
        raise AssertionError(radio)


# --- requests: enum IFLA_AMT_* of include/uapi/linux/amt.h, ports in network order, on a little-endian machine


HEAD = (
    "00000000 09000000 00000000 00000000"  # struct ifinfomsg
    "09000300 616d743000000000 0a000100 02000000000a0000"  # IFLA_IFNAME, IFLA_ADDRESS
)
BYTES = {
    GATEWAY: "40001280 08000100 616d7400 34000280"  # IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA
    "08000100 00000000 06000200 08dc0000 06000300 08dc0000 08000400 07000000 08000500 0a000201 08000700 0a000202",
    RELAY: "38001280 08000100 616d7400 2c000280"
    "08000100 01000000 06000200 08fc0000 08000400 07000000 08000500 0a000202 08000800 04000000",
}


@pytest.mark.parametrize("add", BYTES, ids=lambda add: add.mode)
def test_a_request_is_these_bytes(add: AmtAdd) -> None:
    message = add.encode(Here())
    assert (message.kind, message.flags) == (16, 0x600)
    assert message.body.hex() == bytes.fromhex(HEAD + BYTES[add]).hex()


def test_a_request_reads_as_the_command_of_iproute2() -> None:
    assert str(GATEWAY) == (
        f"ip link add amt0 address {MAC} type amt mode gateway local 10.0.2.1 discovery 10.0.2.2"
        " gateway_port 2268 relay_port 2268 dev eth1"
    )
    assert str(RELAY) == (
        f"ip link add amt0 address {MAC} type amt mode relay local 10.0.2.2 relay_port 2300 max_tunnels 4 dev eth0"
    )


def test_an_ipv6_address_is_never_cut_to_its_first_bytes() -> None:
    with pytest.raises(OSError, match="illegal IP address"):
        AmtAdd("amt0", MAC, "relay", "eth0", "2001:db8::1", 2268).encode(Here())


# --- what the kernel tells: a dump's entry, with and without IFLA_AMT_REMOTE_IP


def entry(remote: str = "", kind: str = "amt") -> bytes:
    parts = [wire.u32(1, 0), wire.attr(2, struct.pack(">H", 2268)), wire.attr(3, struct.pack(">H", 2268))]
    parts += [wire.u32(4, 7), wire.attr(5, bytes((10, 0, 2, 1))), wire.attr(7, bytes((10, 0, 2, 2)))]
    parts += [wire.attr(6, bytes(map(int, remote.split("."))))] if remote else []
    info = wire.nest(18, wire.text(1, kind), wire.nest(2, *parts, wire.u32(8, 128)))
    return bytes(16) + wire.text(3, "amt0") + info


def test_the_remote_is_there_when_a_relay_has_advertised_itself() -> None:
    before, after = amt.parse_link(entry()), amt.parse_link(entry("10.0.2.2"))
    assert after == Amt("amt0", "gateway", "10.0.2.1", "10.0.2.2", "10.0.2.2", 2268, 128)
    assert str(after) == "AMT gateway 10.0.2.1 discovery 10.0.2.2 remote 10.0.2.2"
    assert str(before) == "AMT gateway 10.0.2.1 discovery 10.0.2.2 remote none yet"
    wanted = RelayFound("amt0", "10.0.2.2")
    assert wanted.unmet(after) == ""
    assert wanted.unmet(before) == "amt0 has no remote: no Relay Advertisement has come from 10.0.2.2"
    assert wanted.unmet(None) == "there is no AMT interface amt0"
    assert RelayFound("amt0", "10.0.9.9").unmet(after) == "the remote of amt0 is 10.0.2.2, not 10.0.9.9"


@pytest.mark.parametrize("other", [entry(kind="veth"), bytes(16) + wire.text(3, "lo")])
def test_other_links_are_none_of_ours(other: bytes) -> None:
    assert amt.parse_link(other) is None


# --- tunnels


def topology(nodes: str, links: str, rest: str = "") -> Topology:
    return build(parse(f"name: lab\nnodes: {{{nodes}}}\nlinks: [{links}]\n{rest}", "lab.yaml"))


PAIR = "listener: {}, gateway: {amt_gateway: {discovery: relay}, bridge: {ports: [eth0, amt0]}}, source: {}"
ROLES = "relay: {router: {multicast: true}, amt_relay: {}}"
LINE = (
    "{ends: ['listener:eth0', 'gateway:eth0']}, {ends: ['gateway:eth1', 'relay:eth0'], mtu: 1480},"
    " {ends: ['relay:eth1', 'source:eth0']}"
)
VIDEO = "workloads: {v: {multicast: {source: source, receivers: [%s], group: %s, rate: 1mbit, size: 500b}}}\n"


def network(*parts: str) -> Network:
    return assemble.network(topology(*parts))


def test_the_interface_is_as_narrow_as_the_tunnel_and_in_the_segment_of_its_bridge() -> None:
    net = network(f"{PAIR}, {ROLES}", LINE)
    [port] = [i for i in net.interfaces["gateway"] if i.kind == "amt"]
    [listener] = net.interfaces["listener"]
    assert (port.mtu, port.port, port.segment, port.addresses) == (1440, True, listener.segment, ())
    [end] = [i for i in net.interfaces["relay"] if i.kind == "amt"]
    assert (end.mtu, end.addresses, end.segment != port.segment) == (1440, (), True)
    [tunnel] = net.tunnels["gateway"]
    assert (tunnel.dev, tunnel.local, tunnel.discovery) == ("eth1", "10.0.2.1", "10.0.2.2")


def test_the_relay_is_found_beyond_routers_and_by_stated_routes() -> None:
    links = (
        "{ends: ['gateway:up', 'r:a'], addresses: [192.0.2.1/30, 192.0.2.2/30]}, {ends: ['gateway:side', 's:eth0']},"
        " {ends: ['r:b', 'relay:eth0']}, {ends: ['relay:eth1', 'source:eth0']}"
    )
    plain = "s: {}, source: {}, r: {router: {}}, gateway: {amt_gateway: {discovery: relay}%s}, " + ROLES
    for extra in ("", ", routes: [{to: default, via: 192.0.2.2}]"):
        [tunnel] = network(plain % extra, links).tunnels["gateway"]
        assert (tunnel.dev, tunnel.local) == ("up", "192.0.2.1")


def test_a_network_without_routes_has_no_way() -> None:
    links = "{ends: ['gateway:up', 'r:a']}, {ends: ['r:b', 'relay:eth0']}"
    nodes = "r: {router: {}}, gateway: {amt_gateway: {discovery: relay}}, " + ROLES
    with pytest.raises(InputError, match="gateway has no way to relay"):
        topology(nodes, links, "routing: none\n")


def test_a_route_leads_into_the_tunnel_for_receivers_behind_the_gateway() -> None:
    net = network(f"{PAIR}, {ROLES}", LINE, VIDEO % ("listener", "232.1.1.1"))
    assert trees.entries(net) == {"relay": (smcroute.Entry("10.0.3.1", "232.1.1.1", "eth1", ("amt0",)),)}


def test_two_gateways_of_one_relay_have_one_route() -> None:
    nodes = f"{PAIR}, {ROLES}, far: {{amt_gateway: {{discovery: relay}}}}, sw: {{bridge: {{}}}}"
    links = (
        "{ends: ['listener:eth0', 'gateway:eth0']}, {ends: ['gateway:eth1', 'sw:p0']}, {ends: ['far:eth0', 'sw:p1']},"
        " {ends: ['sw:p2', 'relay:eth0']}, {ends: ['relay:eth1', 'source:eth0']}"
    )
    net = network(nodes, links, VIDEO % ("listener, far", "ff3e::8000:1"))
    [route] = trees.entries(net)["relay"]
    assert route.oifs == ("amt0",)
    assert dict(trees.way(net.trees["v"]).receivers) == {"listener": "eth0", "far": "amt0"}, "and not by eth0"


def test_a_router_behind_the_tunnel_joins_in_it_for_others() -> None:
    nodes = "listener: {}, gateway: {amt_gateway: {discovery: relay}, router: {multicast: true}}, source: {}, " + ROLES
    made = plan.plan(topology(nodes, LINE, VIDEO % ("listener", "232.1.1.1")))
    [file] = [s for s in made.steps if isinstance(s, Write) and s.node == "gateway"]
    assert "mgroup from amt0 source 10.0.3.1 group 232.1.1.1\n" in file.text
    assert "mroute from amt0 source 10.0.3.1 group 232.1.1.1 to eth0\n" in file.text
    [file] = [s for s in made.steps if isinstance(s, Write) and s.node == "relay"]
    assert "mgroup" not in file.text


def test_relays_are_made_before_their_gateways_and_gateways_are_awaited() -> None:
    made = plan.plan(topology(f"{PAIR}, {ROLES}", LINE))
    adds = [s.node for s in made.steps if isinstance(s, Configure) and isinstance(s.request, AmtAdd)]
    assert adds == ["relay", "gateway"]
    waits = [s for s in made.steps if isinstance(s, Wait) and isinstance(s.probe, RelayFound)]
    assert [(w.node, str(w.probe)) for w in waits] == [("gateway", "amt0 remote 10.0.2.2")]
    assert "amt" in [f.name for f in made.requires()]


def test_a_lab_of_ipv4_has_no_ipv6_on_the_interface() -> None:
    made = plan.plan(topology(f"{PAIR}, {ROLES}", LINE, "families: [ipv4]\n"))
    words = [str(s) for s in made.steps if "amt0" in str(s)]
    assert "[relay] ip link set amt0 addrgenmode none" in words
    assert not any("ipv6" in w for w in words)


def test_user_space_is_not_there_yet() -> None:
    nodes = f"{PAIR}, {ROLES.replace('amt_relay: {}', 'amt_relay: {driver: userspace}')}"
    with pytest.raises(Unsupported, match="no AMT gateway and relay in user space; use `driver: kernel`"):
        plan.plan(topology(nodes, LINE)).requires()


def test_a_restart_takes_the_interface_down_and_up() -> None:
    made = plan.plan(
        topology(f"{PAIR}, {ROLES}", LINE, "duration: 9s\nevents: [{at: 3s, node: relay, restart: amt_relay}]\n")
    )
    found = [s for s in schedule.run_steps(made) if isinstance(s, Configure)]
    silent, *moved, usual = (s.request for s in found)
    assert moved == [LinkSet("amt0", up=False), LinkSet("amt0", up=True)]
    assert str(silent) == "sysctl -w net.ipv4.icmp_ratelimit=1000000000"
    assert str(usual) == "sysctl -w net.ipv4.icmp_ratelimit=1000"
    assert {(s.node, s.at) for s in found} == {("relay", 3.0)}
    told = validity._excused(made.topology)
    assert told == {f"{node}.amt0.{way}_dropped" for node in ("gateway", "relay") for way in ("rx", "tx")}


def test_captures_and_counters_know_the_interface() -> None:
    net = network(f"{PAIR}, {ROLES}", LINE)
    assert ("relay", "amt0") in net.captured("relay:*")
