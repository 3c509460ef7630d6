"""MPTCP connections of two hosts, from rows made by hand: one id for two tokens, and times of paths (no kernel)."""

from __future__ import annotations

from typing import Any

from testbed.metrics import connections
from testbed.metrics.owners import owners
from testbed.metrics.records import Sample
from tests.test_paths import ORIGIN, PLANNED, sample, subflow

CLIENT, SERVER = 7, 9


def mirrored(row: dict[str, Any]) -> dict[str, Any]:
    """Return the subflow as the server sees it."""
    ends = {"local": row["remote"], "local_port": row["remote_port"], "remote": row["local"]}
    return (
        row
        | ends
        | {"remote_port": row["local_port"], "token": SERVER, "here": False, "bytes_received": row["bytes_sent"]}
    )


def seen(at: float, **more: object) -> dict[str, Any]:
    return {"opened": ORIGIN + at, "here": True, "bytes_sent": 0, **more}


def joined(phone: list[Sample], server: list[Sample]) -> list[connections.Connection]:
    hosts = {"server": server, "phone": phone}
    return connections.connections(hosts, ORIGIN, owners(PLANNED, hosts))


def test_the_tokens_of_both_hosts_are_one_connection_and_the_opener_is_first() -> None:
    rows = [subflow(**seen(0.5, bytes_sent=3000)), subflow("10.0.2.1", 5001, **seen(0.7, backup=True, bytes_sent=10))]
    other = subflow(port=6000, **seen(0.9), token=8)
    phone = [sample(-1), sample(1, *rows), sample(2, rows[0], other, closed=[rows[1] | {"closed": ORIGIN + 1.5}])]
    server = [sample(-1), sample(2, *map(mirrored, rows))]
    first, second = joined(phone, server)
    assert [(v.node, v.token) for v in first.views] == [("phone", CLIENT), ("server", SERVER)]
    assert [v.node for v in second.views] == ["phone"]
    assert (first.id, second.id) == ("c1", "c2")
    lines = {line.path: line for node, line in first.lines if node == "phone"}
    late = lines["eth1/server:eth0"]
    assert (late.opened_at, late.closed_at, late.backup, late.opened_here, late.bytes_sent) == (
        0.7,
        1.5,
        True,
        True,
        10,
    )


def test_a_path_has_its_times_and_who_opened_it_and_nothing_that_nobody_saw() -> None:
    rows = [subflow(**seen(0.5)), subflow("10.0.2.1", 5001, **seen(0.7, backup=True))]
    gone = rows[1] | {"closed": ORIGIN + 1.5}
    phone = [
        sample(-1),
        sample(1, *rows),
        sample(1.2, rows[0], rows[1] | {"backup": False}),
        sample(2, rows[0], closed=[gone]),
    ]
    found = connections.figures(joined(phone, [sample(-1), sample(1, *map(mirrored, rows))]))
    value = {name: m.value for name, m in found.items()}
    assert value["phone.path.eth1/server:eth0.opened_at_s"] == 0.7
    assert value["phone.path.eth1/server:eth0.closed_at_s"] == 1.5
    assert "phone.path.eth0/server:eth0.closed_at_s" not in value
    assert value["phone.path.eth0/server:eth0.opened_here"] == 1
    assert value["server.path.eth0/phone:eth0.opened_here"] == 0
    assert [v for _, v in found["phone.path.eth1/server:eth0.backup"].series][:2] == [1, 0]


def test_a_recording_without_times_has_no_such_figures() -> None:
    assert connections.figures(joined([sample(-1), sample(1, subflow())], [])) == {}
