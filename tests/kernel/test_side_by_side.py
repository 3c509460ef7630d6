"""Labs beside each other, and one lab under many hands: names, collisions, changes in place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed import load, up
from testbed.lab import control, reach
from tests.conftest import Need, testbed
from tests.kernel.remains import Driver, awaited, driver

pytestmark = pytest.mark.kernel

LAB = """
name: site
nodes:
  client: {%(client)s}
  server: {}
links:
  - {name: cable, ends: [client:eth0, server:eth0], addresses: [[10.5.0.1/24%(address)s], 10.5.0.2/24], rate: %(rate)s}
%(more)s
"""
PLAIN = {"client": "", "address": "", "rate": "50mbit", "more": ""}


@pytest.fixture
def line(tmp_path: Path, name: str) -> Iterator[Driver]:
    with driver(tmp_path, name) as found:
        yield found


def write(line: Driver, **values: str) -> None:
    """Write the topology with some values in the place of the plain ones."""
    rows = LAB % {**PLAIN, **values}
    if "server2" in values.get("more", ""):
        rows = rows.replace("  server: {}", "  server: {}\n  server2: {}")
    (line.folder / "lab.yaml").write_text(rows)


def changed(line: Driver, name: str, **values: str) -> list[str]:
    """Change the running lab to one with these values, and return the difference that is printed."""
    write(line, **values)
    holder = control.find(name).holder
    assert line.run("up", "../lab.yaml", "--name", name) == 0, line.said()
    assert f"lab {name} changed in" in line.said()
    assert control.find(name).holder == holder, "it is the same lab"
    return [row for row in line.said().splitlines() if row.startswith(("+ ", "- "))]


def seen(name: str, *argv: str) -> str:
    """Return what a command says in the client, by way of the command line."""
    done = testbed("exec", name, "client", "--", *argv)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ten_labs_of_one_topology_do_not_see_each_other(tmp_path: Path, name: str) -> None:
    (tmp_path / "lab.yaml").write_text(LAB % PLAIN)
    topology = load(tmp_path / "lab.yaml")
    with ExitStack() as stack:
        labs = [stack.enter_context(up(topology, f"{name}{chr(97 + n)}")) for n in range(10)]
        for n, lab in enumerate(labs):
            # Same addresses everywhere, and a host that only this lab has.
            lab.exec("server", ("ip", "addr", "add", f"10.5.0.{100 + n}/24", "dev", "eth0")).check_returncode()
            lab.exec("", ("touch", f"/run/testbed/only-{n}")).check_returncode()
        for n, lab in enumerate(labs):
            assert lab.exec("client", ("ping", "-c1", "-W2", "10.5.0.2")).returncode == 0
            assert lab.exec("client", ("ping", "-c1", "-W2", f"10.5.0.{100 + n}")).returncode == 0
            other = (n + 1) % 10
            answer = lab.exec("client", ("ping", "-c1", "-W0.2", f"10.5.0.{100 + other}"))
            assert answer.returncode == 1, f"lab {n} reaches a host of lab {other}: {answer.stdout}"
            assert lab.exec("", ("ls", "/run/testbed")).stdout.split().count(f"only-{other}") == 0
            processes = lab.exec("", ("ps", "-e", "-o", "args=")).stdout.splitlines()
            assert len(processes) == 2, f"PID 1 and ps, no process of another lab: {processes}"
        assert {lab.name for lab in labs} <= set(reach.names())
    assert not {lab.name for lab in labs} & set(reach.names())


_AT_ONCE = """
import sys, testbed
from testbed.errors import LabError
topology = testbed.load(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    try:
        lab = testbed.up(topology, sys.argv[2])
        lab.keep()
        print("won", lab.holder, flush=True)
    except LabError as e:
        print("lost", e.exit_status, e, flush=True)
"""


def test_of_two_ups_of_one_name_at_the_same_instant_exactly_one_wins(tmp_path: Path, name: str) -> None:
    (tmp_path / "lab.yaml").write_text(LAB % PLAIN)
    words = (sys.executable, "-c", _AT_ONCE, str(tmp_path / "lab.yaml"), name)
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        rivals = [stack.enter_context(subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)) for _ in range(2)]
        streams = [(r.stdin, r.stdout) for r in rivals]
        for _, out in streams:
            assert out is not None
            assert out.readline() == "ready\n"
        for _ in range(10):
            for to, _ in streams:
                assert to is not None
                print(file=to, flush=True)
            said = sorted(out.readline() for _, out in streams if out is not None)
            assert [s.split()[0] for s in said] == ["lost", "won"], said
            assert said[0].startswith(f"lost 3 lab {name}: there is one of this name already, or another"), said
            lab = control.find(name)
            assert lab.holder == int(said[1].split()[1])
            assert lab.exec("client", ("ping", "-c1", "-W2", "server")).returncode == 0, "the winner's lab is whole"
            lab.down()
        for to, _ in streams:
            assert to is not None
            to.close()


def test_a_lab_that_is_still_coming_up_is_left_alone(line: Driver, name: str, tmp_path: Path) -> None:
    (line.folder / "lab.yaml").write_text("name: slow\nnodes: {a: {commands: [[sleep, '0.7']]}}\n")
    with driver(tmp_path / "second", f"{name}-2") as second:
        line.begin("up", "../lab.yaml", "--name", name)
        awaited(line, "sleep 0.7")
        assert second.run("up", "../../lab.yaml", "--name", name) == 3
        assert f"lab {name}: it is busy (state starting)" in second.said()
        assert line.end() == 0, "and the first is not disturbed"
        assert second.run("up", "../../lab.yaml", "--name", name) == 0
        assert f"lab {name} unchanged" in second.said()


def test_a_lab_that_is_still_coming_up_can_be_taken_down(line: Driver, name: str, tmp_path: Path) -> None:
    (line.folder / "lab.yaml").write_text("name: slow\nnodes: {a: {commands: [[sleep, '1000']]}}\n")
    with driver(tmp_path / "second", f"{name}-2") as second:
        line.begin("up", "../lab.yaml", "--name", name)
        awaited(line, "sleep 1000")
        assert second.run("down", name) == 0, second.said()
        assert line.end() == 3
        assert f"testbed: lab {name}: it is being taken down" in line.said()
        assert line.remains(name) == {}


def test_of_several_downs_at_once_none_fails(name: str, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(LAB % PLAIN)
    topology = load(tmp_path / "lab.yaml")
    for _ in range(5):
        up(topology, name).keep()
        labs = [control.find(name) for _ in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(control.RunningLab.down, labs))
        assert name not in reach.names()


def test_up_again_changes_nothing(line: Driver, name: str) -> None:
    write(line)
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    lab = control.find(name)
    before = lab.exec("client", ("ip", "-d", "addr")).stdout
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    assert f"lab {name} unchanged" in line.said()
    assert control.find(name).holder == lab.holder
    assert lab.exec("client", ("ip", "-d", "addr")).stdout == before


def test_a_dry_run_shows_the_difference_and_changes_nothing(line: Driver, name: str) -> None:
    write(line)
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    before = seen(name, "sh", "-c", "ip addr; tc qdisc")
    write(line, rate="20mbit")
    assert line.run("up", "../lab.yaml", "--name", name, "--dry-run") == 0
    said = line.said().splitlines()
    assert [r[0] for r in said] == ["-", "-", "+", "+"]
    assert all("tc qdisc replace dev eth0" in r and f"rate {50 if r[0] == '-' else 20}000000bit" in r for r in said)
    assert seen(name, "sh", "-c", "ip addr; tc qdisc") == before


def test_a_rate_changes_in_place(line: Driver, name: str, need: Need) -> None:
    need("tbf")
    write(line)
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    assert "rate 50Mbit" in seen(name, "tc", "qdisc", "show", "dev", "eth0")
    difference = changed(line, name, rate="20mbit")
    assert len([r for r in difference if r.startswith("- [") and "tc qdisc replace dev eth0" in r]) == 2
    assert len([r for r in difference if r.startswith("+ [") and "tc qdisc replace dev eth0" in r]) == 2
    assert "rate 20Mbit" in seen(name, "tc", "qdisc", "show", "dev", "eth0")


def test_addresses_routes_and_names_change_in_place(line: Driver, name: str) -> None:
    write(line)
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    route = "routes: [{to: 10.99.0.0/16, via: 10.5.0.2}]"
    difference = changed(line, name, address=", 10.6.0.1/24", client=route)
    assert "+ [client] ip addr add 10.6.0.1/24 dev eth0" in difference
    assert "+ [client] ip route add 10.99.0.0/16 via 10.5.0.2 dev eth0" in difference
    assert "10.6.0.1/24" in seen(name, "ip", "-4", "addr", "show", "dev", "eth0")
    assert "via 10.5.0.2 dev eth0" in seen(name, "ip", "route", "show", "10.99.0.0/16")
    assert seen(name, "getent", "hosts", "10.6.0.1").split()[1] == "client-eth0"
    difference = changed(line, name)
    assert "- [client] ip addr add 10.6.0.1/24 dev eth0" in difference
    assert "10.6.0.1" not in seen(name, "ip", "-4", "addr", "show", "dev", "eth0")
    assert seen(name, "ip", "route", "show", "10.99.0.0/16") == ""
    assert testbed("exec", name, "client", "--", "getent", "hosts", "10.6.0.1").returncode != 0


def test_an_mptcp_endpoint_changes_in_place(line: Driver, name: str, need: Need) -> None:
    need("mptcp")
    write(line, client="mptcp: {}")
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    before = seen(name, "ip", "mptcp", "endpoint")
    difference = changed(line, name, client="mptcp: {endpoints: [{interface: eth0, flags: [signal]}]}")
    assert any("ip mptcp endpoint add 10.5.0.1" in r and r.startswith("+") for r in difference)
    assert "10.5.0.1 id 1 signal" in seen(name, "ip", "mptcp", "endpoint")
    difference = changed(line, name, client="mptcp: {}")
    assert any("ip mptcp endpoint add 10.5.0.1" in r and r.startswith("-") for r in difference)
    assert seen(name, "ip", "mptcp", "endpoint") == before


def test_a_node_and_a_link_are_added_in_place_and_work(line: Driver, name: str) -> None:
    write(line)
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    more = "  - {ends: [client:eth1, server2:eth0], addresses: [10.8.0.1/24, 10.8.0.2/24]}"
    difference = changed(line, name, more=more)
    assert "+ [-] ip netns add server2" in difference
    assert not [r for r in difference if r.startswith("-")]
    seen(name, "ping", "-c1", "-W2", "server2")
    seen(name, "ping", "-c1", "-W2", "server")
    assert json.loads(testbed("status", name, "--json").stdout)["nodes"] == ["client", "server", "server2"]


def test_what_cannot_be_undone_is_refused_by_name_and_made_anew_on_request(line: Driver, name: str) -> None:
    write(line, more="  - {ends: [client:eth1, server2:eth0], addresses: [10.8.0.1/24, 10.8.0.2/24]}")
    assert line.run("up", "../lab.yaml", "--name", name) == 0
    holder = control.find(name).holder
    before = seen(name, "ip", "addr")
    write(line, rate="20mbit")
    assert line.run("up", "../lab.yaml", "--name", name) == 3
    assert "this can't be undone in a running lab; `--recreate` takes it down" in line.said()
    assert "\n    [-] ip netns add server2" in line.said()
    assert seen(name, "ip", "addr") == before, "and nothing of the rest was changed"
    assert "rate 50Mbit" in seen(name, "tc", "qdisc", "show", "dev", "eth0")
    assert line.run("up", "../lab.yaml", "--name", name, "--recreate") == 0, line.said()
    assert f"lab {name} recreated in" in line.said()
    assert control.find(name).holder != holder
    assert "rate 20Mbit" in seen(name, "tc", "qdisc", "show", "dev", "eth0")
    assert json.loads(testbed("status", name, "--json").stdout)["nodes"] == ["client", "server"]
