"""Each address of an MPTCP host has its own way: what the kernel says of routes, and who answers ARP."""

from __future__ import annotations

from pathlib import Path

import pytest

import testbed as api
from testbed.loading import load
from testbed.plan.assemble import network
from tests.conftest import Need

pytestmark = pytest.mark.kernel
SEGMENT = """
name: segment
nodes:
  phone: {mptcp: {endpoints: [ENDPOINTS]}}
  sw: {bridge: {}}
  nas: {mptcp: {}}
  gw: {router: {}}
  web: {mptcp: {}}
links:
  - {ends: [phone:eth0, sw:p0]}
  - {ends: [phone:eth1, sw:p1]}
  - {ends: [sw:p2, nas:eth0]}
  - {ends: [sw:p3, gw:lan]}
  - {ends: [gw:wan, web:eth0]}
"""
ROUTERS = """
name: routers
families: [ipv4]
nodes:
  a: {}
  r: {router: {}, mptcp: {ENDPOINTS}}
  m: {router: {}, mptcp: {ENDPOINTS}}
  z: {}
links:
  - {ends: [a:eth0, r:eth0]}
  - {ends: [r:eth1, m:eth0]}
  - {ends: [m:eth1, z:eth0]}
"""


def route(lab: api.Lab, node: str, to: str, source: str) -> str:
    """Return the interface by which the kernel sends packets from an address, "" when it sends none."""
    said = lab.exec(node, ("ip", "route", "get", to, "from", source))
    words = said.stdout.split()
    return words[words.index("dev") + 1] if said.returncode == 0 else ""


@pytest.mark.parametrize(
    "endpoints", ["", "{interface: eth0}", "{interface: eth1}", "{interface: eth0}, {interface: eth1}"]
)
def test_an_address_leaves_by_its_interface_in_a_segment_with_two(
    tmp_path: Path, name: str, need: Need, endpoints: str
) -> None:
    need("mptcp", "bridge")
    (tmp_path / "t.yaml").write_text(SEGMENT.replace("ENDPOINTS", endpoints))
    topology = load(tmp_path / "t.yaml")
    net = network(topology)
    with api.up(topology, name) as lab:
        targets = [h for node in ("nas", "web") for i in net.interfaces[node] for h in i.hosts()]
        ways = [(i.name, h, to) for i in net.interfaces["phone"] for h in i.hosts() for to in targets]
        same = [(dev, h, to) for dev, h, to in ways if (":" in h) == (":" in to)]
        assert len(same) == 8
        assert {(dev, h, to): route(lab, "phone", to, h) for dev, h, to in same} == {way: way[0] for way in same}
        lab.exec("phone", ("ip", "link", "set", "eth0", "down"))
        four = [way for way in same if ":" not in way[1]]
        found = {way: route(lab, "phone", way[2], way[1]) for way in four}
        assert found == {way: "" if way[0] == "eth0" else "eth1" for way in four}, "and nothing takes over its address"


def test_only_the_interface_that_has_an_address_answers_for_it(tmp_path: Path, name: str, need: Need) -> None:
    need("mptcp", "bridge")
    text = SEGMENT.replace("phone: {mptcp: {endpoints: [ENDPOINTS]}}", "phone: {}")
    (tmp_path / "t.yaml").write_text(text)
    topology = load(tmp_path / "t.yaml")
    net = network(topology)
    with api.up(topology, name) as lab:
        own = {i.name: i for i in net.interfaces["phone"]}
        for i in own.values():
            for _ in range(5):  # each time whoever is asked first may answer
                lab.exec("nas", ("ip", "neigh", "flush", "all"))
                lab.exec("nas", ("ping", "-c", "1", "-W", "2", i.host(4)))
                [row] = lab.exec("nas", ("ip", "neigh", "show", i.host(4))).stdout.splitlines()
                assert i.mac in row
        lab.exec("phone", ("ip", "link", "set", "eth0", "down"))
        lab.exec("nas", ("ip", "neigh", "flush", "all"))
        assert lab.exec("nas", ("ping", "-c", "1", "-W", "1", own["eth0"].host(4))).returncode == 1


@pytest.mark.parametrize("endpoints", ["", "endpoints: [{interface: eth0}, {interface: eth1}]"])
def test_a_router_that_is_an_mptcp_host_answers_from_each_of_its_addresses(
    tmp_path: Path, name: str, need: Need, endpoints: str
) -> None:
    need("mptcp")
    (tmp_path / "t.yaml").write_text(ROUTERS.replace("ENDPOINTS", endpoints))
    topology = load(tmp_path / "t.yaml")
    net = network(topology)
    with api.up(topology, name) as lab:
        owners = net.owners
        lost = {
            (node, address)
            for node in ("a", "r", "m", "z")
            for address, i in owners.items()
            if i.node != node and lab.exec(node, ("ping", "-c", "1", "-W", "2", address)).returncode
        }
        assert not lost
