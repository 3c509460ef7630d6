"""What a role says of itself is all that the rest of testbed knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.drivers.link import LinkSet
from testbed.metrics import nodes as derive
from testbed.metrics import table
from testbed.metrics.metric import Metric
from testbed.metrics.records import Sample
from testbed.nodes.node import RESTARTING, ROLES, Node, called, figured, rank
from testbed.nodes.place import Place
from testbed.nodes.role import Role
from testbed.programs.sampler import counters
from testbed.spec import Spec
from testbed.steps import Request

HERE = Place("a", (), (4, 6))


def test_the_roles_are_the_fields_of_a_node_that_are_roles() -> None:
    assert " ".join(ROLES) == "bridge router access_point station mptcp middlebox amt_gateway amt_relay"
    node = Node.model_validate({"mptcp": {}, "router": {}, "bridge": {}})
    assert list(node.roles()) == ["bridge", "router", "mptcp"]
    assert Node().roles() == {}


def test_a_relay_starts_before_gateways_and_roles_that_wait_for_none_in_the_order_of_the_fields() -> None:
    assert [name for name in ROLES if rank(name)] == ["amt_gateway"]
    node = Node.model_validate({"amt_gateway": {"discovery": "b"}, "amt_relay": {}, "router": {}})
    assert list(node.started()) == ["router", "amt_relay", "amt_gateway"]


def test_a_role_with_nothing_to_say_changes_nothing() -> None:
    role = Role()
    for found in (role.faults(HERE), role.first(HERE), role.steps(HERE), role.restart(HERE), role.forward(HERE, ())):
        assert list(found) == []
    assert not any((role.requires(), role.interfaces(forwards=True), role.counters(HERE), role.samples()))
    assert not any((role.loose(), role.forwards(), role.routes_multicast(), role.excused(restarted=True)))
    assert [role.joins(HERE), role.switch(), role.radio(HERE), role.offers(HERE, str)] == [None] * 4


def test_the_names_in_sentences_are_those_of_roles() -> None:
    assert called("mptcp") == "an MPTCP host"
    assert called("bridge") == "a node with `bridge`"
    assert [figured(owner) for owner in ("mptcp", "subflow", "eth0")] == ["mptcp", "mptcp", ""]
    assert RESTARTING == ("amt_relay", "amt_gateway")


def test_inheritance_is_one_deep() -> None:
    assert {kind.__bases__ for kind in ROLES.values()} == {(Role,)}
    assert Role.__bases__ == (Spec,)


NETSTAT = "TcpExt: SyncookiesSent ListenDrops\nTcpExt: 4 17\nIpExt: InOctets\nIpExt: 900\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (NETSTAT, {"TcpExt.SyncookiesSent": 4, "TcpExt.ListenDrops": 17, "IpExt.InOctets": 900}),
        ("sockets: used 5\nTCP: inuse 1 tw 0\n", {"sockets.used": 5, "TCP.inuse": 1, "TCP.tw": 0}),
        ("Ip6InReceives \t 123\nIp6InDelivers 9\n", {"Ip6InReceives": 123, "Ip6InDelivers": 9}),
        ("42\n", {"": 42}),
        ("-1\n", {}),  # no counter is negative
        (f"Ip6InReceives {2**63}\n", {}),
        ("Tcp: RtoMin MaxConn\nTcp: 200 -1\n", {"Tcp.RtoMin": 200}),
        ("", {}),
        ("TcpExt: A B\nTcpExt: 1\n", {"TcpExt.A": 1}),  # cut off
        ("a b c\n: :\n\0\n", {}),
    ],
)  # fmt: skip
def test_numbers_of_files_below_proc_have_names(text: str, found: dict[str, int]) -> None:
    assert counters.numbers(text) == found


def test_a_file_of_the_kernel_is_read_as_often_as_one_likes_and_one_that_it_lacks_has_no_figure() -> None:
    wanted = {
        "r": {"a": ("/proc/net/snmp", "Ip.Forwarding"), "b": ("/proc/net/none", "X"), "c": ("/proc/net/snmp", "X")}
    }
    opened = counters.opened(wanted)
    assert {name for _, name in opened} == {"a", "c"}
    for _ in range(2):
        assert counters.read(opened) == {
            "r": {"a": counters.numbers(Path("/proc/net/snmp").read_text())["Ip.Forwarding"]}
        }


@pytest.mark.parametrize("file", ["/etc/passwd", "/proc/net/../kcore", "/proc/1/net/snmp", "net/snmp"])
def test_a_role_counts_only_what_belongs_to_its_network_namespace(file: str) -> None:
    with pytest.raises(ValueError, match="is not a file below /proc/net/ or /proc/sys/net/"):
        counters.opened({"r": {"a": (file, "")}})


def test_a_counter_is_counted_from_the_begin_of_the_run_and_a_gauge_is_the_highest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = {
        ("r", "drops"): Metric("r", "drops", "packet", ""),
        ("r", "held"): Metric("r", "held", "byte", "", gauge=True),
    }
    monkeypatch.setattr(table, "_ROWS", {**table._ROWS, **rows})
    seen = [(9.0, 100, 7), (11.0, 103, 9), (12.0, 104, 3)]
    samples = [Sample(t, {}, [], roles={"r": {"drops": a, "held": b, "unknown": 1}}) for t, a, b in seen]
    found = derive.counted("n", samples, 10.0)
    assert set(found) == {"n.r.drops", "n.r.held"}
    assert (found["n.r.drops"].value, found["n.r.drops"].unit) == (4, "packet")
    assert found["n.r.drops"].series == ((-1.0, 0.0), (1.0, 3.0), (2.0, 4.0))
    assert (found["n.r.held"].value, found["n.r.held"].unit) == (9, "byte")
    assert derive.counted("n", [], 10.0) == {}


def test_a_restart_is_what_the_role_says() -> None:
    def requests(name: str) -> Iterator[Request]:
        node = Node.model_validate({"amt_gateway": {"discovery": "b", "name": "amt7"}, "amt_relay": {}})
        return node.roles()[name].restart(Place("a", (), (4,), sysctl={"net.ipv4.icmp_ratelimit": 5}))

    assert list(requests("amt_gateway")) == [LinkSet("amt7", up=False), LinkSet("amt7", up=True)]
    assert str(list(requests("amt_relay"))[-1]) == "sysctl -w net.ipv4.icmp_ratelimit=5"
