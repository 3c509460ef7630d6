"""Requests for links, addresses, routes and endpoints as bytes, read back by pyroute2's independent decoder."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from pyroute2.netlink.generic.mptcp import mptcp_msg
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from testbed.drivers import link, mptcp, route
from testbed.drivers.sysctl import SysctlSet
from testbed.linux import wire
from testbed.steps import Delete

INDEXES = {"eth0": 7, "br0": 8}


class Here:
    """Stands for a namespace that has eth0 and br0, where what is made gets 9, and 10 in another node."""

    def index(self, ifname: str) -> int:
        return INDEXES[ifname]

    def claim(self, ifname: str, node: str | None = None) -> int:
        return 9 if node is None else 10

    def namespace(self, node: str) -> int:
        assert node == "server"
        return 5

    def radio(self, name: str) -> str:
        raise AssertionError(name)

    def wiphy(self, radio: str) -> int:
        raise AssertionError(radio)


def decoded(kind: type[Any], message: wire.Message) -> Any:
    found = kind(wire.header(len(message.body), message.kind, message.flags, 0) + message.body)
    found.decode()
    return found


def test_a_veth_pair_is_made_in_both_namespaces_at_once_with_one_queue_an_end() -> None:
    add = link.VethAdd("eth1", "02:00:00:00:00:01", "server", "eth0", "02:00:00:00:00:02", master="br0")
    message = add.encode(Here())
    assert (message.kind, message.flags) == (16, wire.NLM_F_CREATE | wire.NLM_F_EXCL)
    made = decoded(ifinfmsg, message)
    assert (made["index"], made["flags"], made["change"]) == (9, 1, 1), "a bridge's port comes up"
    assert made.get_attr("IFLA_IFNAME") == "eth1"
    assert made.get_attr("IFLA_ADDRESS") == "02:00:00:00:00:01"
    assert made.get_attr("IFLA_MASTER") == 8
    assert (made.get_attr("IFLA_NUM_TX_QUEUES"), made.get_attr("IFLA_NUM_RX_QUEUES")) == (1, 1)
    info = made.get_attr("IFLA_LINKINFO")
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    assert (peer["index"], peer["flags"], peer.get_attr("IFLA_NET_NS_FD")) == (10, 0, 5)
    assert (peer.get_attr("IFLA_IFNAME"), peer.get_attr("IFLA_ADDRESS")) == ("eth0", "02:00:00:00:00:02")
    assert str(add) == (
        "ip link add eth1 address 02:00:00:00:00:01 master br0 up numtxqueues 1 numrxqueues 1 type veth"
        " peer eth0 netns server address 02:00:00:00:00:02"
    )
    assert decoded(ifinfmsg, link.VethAdd("eth1", add.mac, "server", "eth0", add.peer_mac).encode(Here()))["flags"] == 0


@pytest.mark.parametrize(("stp", "snooping"), [(True, False), (False, True)])
def test_a_bridge_is_made_with_its_options(stp: bool, snooping: bool) -> None:
    made = decoded(ifinfmsg, link.BridgeAdd("br1", "02:00:00:00:00:03", snooping, stp).encode(Here()))
    options = made.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    assert (made["index"], made.get_attr("IFLA_IFNAME"), made["flags"]) == (9, "br1", 0)
    assert options.get_attr("IFLA_BR_STP_STATE") == int(stp)
    assert options.get_attr("IFLA_BR_MCAST_SNOOPING") == int(snooping)


def test_a_port_joins_its_bridge_and_comes_up() -> None:
    made = decoded(ifinfmsg, link.PortAdd("eth0", "br0").encode(Here()))
    assert (made["index"], made["flags"], made["change"], made.get_attr("IFLA_MASTER")) == (7, 1, 1, 8)


@pytest.mark.parametrize(
    ("request_", "flags", "change", "mtu", "text"),
    [
        (link.LinkSet("eth0", up=True), 1, 1, None, "ip link set eth0 up"),
        (link.LinkSet("eth0", up=False), 0, 1, None, "ip link set eth0 down"),
        (link.LinkSet("eth0", mtu=1400), 0, 0, 1400, "ip link set eth0 mtu 1400"),
    ],
)
def test_a_link_changes_what_is_named_and_nothing_else(
    request_: link.LinkSet, flags: int, change: int, mtu: int | None, text: str
) -> None:
    made = decoded(ifinfmsg, request_.encode(Here()))
    assert (made["index"], made["flags"], made["change"], made.get_attr("IFLA_MTU")) == (7, flags, change, mtu)
    assert str(request_) == text


def test_no_address_comes_by_itself() -> None:
    made = decoded(ifinfmsg, link.AutoAddressOff("eth0").encode(Here()))
    assert made.get_attr("IFLA_AF_SPEC").get_attr("AF_INET6").get_attr("IFLA_INET6_ADDR_GEN_MODE") == 1


@pytest.mark.parametrize(("address", "family", "flags"), [("10.0.0.1/30", 2, 0), ("2001:db8::1/64", 10, 2)])
def test_an_address_is_its_own_and_an_ipv6_one_waits_for_no_duplicate(address: str, family: int, flags: int) -> None:
    add = link.AddressAdd(address, "eth0")
    host, _, length = address.partition("/")
    for request, kind in ((add, 20), (Delete(add), 21)):
        message = request.encode(Here())
        made = decoded(ifaddrmsg, message)
        assert message.kind == kind
        assert (made["family"], made["prefixlen"], made["flags"], made["index"]) == (family, int(length), flags, 7)
        assert (made.get_attr("IFA_ADDRESS"), made.get_attr("IFA_LOCAL")) == (host, host)


@pytest.mark.parametrize(
    ("request_", "length", "scope", "table"),
    [
        (route.RouteAdd("10.1.0.0/16", "eth0", "10.0.0.2"), 16, 0, 254),
        (route.RouteAdd("10.0.0.0/30", "eth0", table=100), 30, 253, 100),
        (route.RouteAdd("2001:db8::/32", "eth0", "2001:db8::2", table=300), 32, 0, 300),
        (route.RouteAdd("10.1.2.3", "eth0"), 32, 253, 254),
        (route.RouteAdd("default", "eth0", "10.0.0.2"), 0, 0, 254),
    ],
)
def test_a_route_replaces_an_equal_one(request_: route.RouteAdd, length: int, scope: int, table: int) -> None:
    message = request_.encode(Here())
    made = decoded(rtmsg, message)
    assert (message.kind, message.flags) == (24, wire.NLM_F_CREATE | wire.NLM_F_REPLACE)
    assert (made["dst_len"], made["scope"], made["proto"], made["type"]) == (length, scope, 4, 1)
    assert (made.get_attr("RTA_OIF"), made.get_attr("RTA_TABLE")) == (7, table)
    assert made.get_attr("RTA_DST") == (request_.to.partition("/")[0] if request_.to != "default" else None)
    assert made.get_attr("RTA_GATEWAY") == (request_.via or None)
    assert made["table"] == (table if table < 256 else 0)


@pytest.mark.parametrize(("source", "family", "length"), [("10.0.0.1", 2, 32), ("2001:db8::1", 10, 128)])
def test_a_rule_sends_what_comes_from_an_address_to_a_table(source: str, family: int, length: int) -> None:
    made = decoded(fibmsg, route.RuleAdd(source, 100).encode(Here()))
    assert (made["family"], made["src_len"], made["action"]) == (family, length, 1)
    assert (made.get_attr("FRA_SRC"), made.get_attr("FRA_TABLE")) == (source, 100)


ENDPOINT = mptcp.EndpointAdd("10.0.0.1", 3, ("subflow", "backup"), "eth0", 4000)


def test_an_endpoint_has_its_address_id_flags_interface_and_port() -> None:
    message = ENDPOINT.encode(Here())
    made = decoded(mptcp_msg, message)
    body = made.get_attr("MPTCP_PM_ATTR_ADDR")
    assert (message.family, made["cmd"]) == ("mptcp_pm", 1)
    assert (body.get_attr("MPTCP_PM_ADDR_ATTR_FAMILY"), body.get_attr("MPTCP_PM_ADDR_ATTR_ID")) == (2, 3)
    assert body.get_attr("MPTCP_PM_ADDR_ATTR_ADDR4") == "10.0.0.1"
    assert body.get_attr("MPTCP_PM_ADDR_ATTR_FLAGS") == 2 | 4
    assert body.get_attr("MPTCP_PM_ADDR_ATTR_IF_IDX") == "07:00:00:00", "a number that pyroute2 leaves as bytes"
    assert struct.pack("=HHH", 6, 5, 4000) in message.body, "MPTCP_PM_ADDR_ATTR_PORT, in host order"
    six = decoded(mptcp_msg, mptcp.EndpointAdd("2001:db8::1", 4, ("signal",)).encode(Here()))
    assert six.get_attr("MPTCP_PM_ATTR_ADDR").get_attr("MPTCP_PM_ADDR_ATTR_ADDR6") == "2001:db8::1"
    assert str(ENDPOINT) == "ip mptcp endpoint add 10.0.0.1 dev eth0 port 4000 id 3 subflow backup"


def test_an_endpoint_goes_and_changes_by_other_numbers_and_the_same_attributes() -> None:
    added, gone = ENDPOINT.encode(Here()).body, Delete(ENDPOINT).encode(Here()).body
    changed = mptcp.EndpointFlags(ENDPOINT).encode(Here()).body
    assert (added[0], gone[0], changed[0]) == (1, 2, 7)
    assert added[1:] == gone[1:] == changed[1:]
    assert str(mptcp.EndpointFlags(ENDPOINT)) == "ip mptcp endpoint change id 3 backup nofullmesh"


def test_limits_and_what_the_kernel_must_then_say_name_both_numbers() -> None:
    limits = mptcp.LimitsSet(4, 2)
    made = decoded(mptcp_msg, limits.encode(Here()))
    assert made["cmd"] == 5
    assert (made.get_attr("MPTCP_PM_ATTR_RCV_ADD_ADDRS"), made.get_attr("MPTCP_PM_ATTR_SUBFLOWS")) == (2, 4)
    assert str(limits) == "ip mptcp limits set subflows 4 add_addr_accepted 2"
    assert str(mptcp.PathManagerHas(limits, (ENDPOINT,))) == "mptcp subflows 4 accepted 2 endpoints 3"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
        ("net.ipv4.conf.eth0/100.forwarding", "/proc/sys/net/ipv4/conf/eth0.100/forwarding"),
    ],
)
def test_a_slash_in_the_name_of_a_parameter_is_a_dot_of_the_file(name: str, path: str) -> None:
    assert SysctlSet(name, "1").path() == path
