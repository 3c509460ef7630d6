"""AMT on the kernel's driver, in a guest: every packet arrives, what is on the wire, restarts, and what remains."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from testbed.loading import read
from testbed.machines.guest import image, microvm
from testbed.machines.guest.qemu import Share, Size
from tests.conftest import ROOT, testbed
from tests.machine.conftest import Run
from tests.machine.test_lab import PATIENCE
from tests.machine.test_microvm import output

pytestmark = [pytest.mark.machine, pytest.mark.xdist_group("measure")]

# RFC 7450 section 5.1: all but 7, Teardown, which the driver never sends
DISCOVERY, ADVERTISEMENT, REQUEST, QUERY, UPDATE, DATA = range(1, 7)
PAIR = ROOT / "topologies/amt-pair.yaml"


@pytest.fixture(scope="module")
def pair(ran: Callable[[str], Run]) -> Run:
    return ran("amt-pair")


@pytest.fixture(scope="module")
def ipv6(ran: Callable[[str], Run]) -> Run:
    return ran("amt-ipv6")


def tshark(file: Path, *words: str) -> list[list[str]]:
    """Decode a capture of tunnels; rows of fields."""
    argv = ("tshark", "-r", str(file), "-d", "udp.port==2268,amt", *words)
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [row.split("\t") for row in done.stdout.splitlines()]


def fields(file: Path, shown: str, *names: str) -> list[list[str]]:
    return tshark(file, "-Y", shown, "-T", "fields", *(word for n in names for word in ("-e", n)))


def test_every_packet_of_both_families_comes_through_but_for_the_restart(pair: Run) -> None:
    metrics = pair.metrics
    for name in ("four", "six"):
        assert metrics[f"{name}.listener.lost_outside_gap_packets"] == 0
        assert metrics[f"{name}.listener.received_packets"] >= 200


def test_a_relay_that_forgot_its_tunnels_is_told_again_within_seconds(pair: Run) -> None:
    events = {e["step"]: e["t"] for e in pair.events}
    down, up = (events[f"[relay] ip link set amt0 {state}  @10s"] for state in ("down", "up"))
    assert 10 <= down <= up < 12
    metrics = pair.metrics
    for name in ("four", "six"):
        assert abs(metrics[f"{name}.listener.gap_at_s"] - down) < 2
        # The driver's Requests are two seconds apart, and one may come while the relay is down.
        assert metrics[f"{name}.listener.gap_s"] < 5


def test_a_counter_that_counts_messages_is_no_doubt(pair: Run) -> None:
    assert pair.metrics["gateway.amt0.tx_dropped"] > 0
    assert "dropped" not in pair.done.stdout


def test_an_ipv6_group_comes_through_an_ipv4_tunnel_in_packets_as_large_as_it_takes(ipv6: Run) -> None:
    metrics = ipv6.metrics
    assert metrics["stream.gateway.loss_pct"] == 0
    assert metrics["stream.gateway.received_packets"] == metrics["stream.sent_packets"] >= 100


@pytest.mark.parametrize(("which", "capture"), [("pair", "gateway/eth1"), ("ipv6", "gateway/eth0")])
def test_the_messages_are_those_of_the_rfc(which: str, capture: str, request: pytest.FixtureRequest) -> None:
    done: Run = request.getfixturevalue(which)
    file = done.folder / f"{capture}.pcapng"
    types = Counter(int(row[0]) for row in fields(file, "amt", "amt.type"))
    assert set(types) == {DISCOVERY, ADVERTISEMENT, REQUEST, QUERY, UPDATE, DATA}
    assert types[DATA] >= 100
    # Of every severity: comment, chat, note, warning and error.
    assert fields(file, "_ws.expert", "frame.number", "_ws.expert.severity", "_ws.expert.message") == []
    assert fields(file, "icmp", "frame.number") == []
    assert fields(file, "amt && udp.port != 2268", "frame.number") == []


def test_queries_and_reports_are_igmpv3_and_mldv2(pair: Run) -> None:
    file = pair.folder / "gateway/eth1.pcapng"
    queries = fields(file, f"amt.type == {QUERY}", "igmp.version", "igmp.type", "icmpv6.type")
    assert {tuple(q) for q in queries} == {("3", "0x11", ""), ("", "", "130")}
    reports = fields(file, f"amt.type == {UPDATE}", "igmp.version", "igmp.type", "icmpv6.type")
    assert {tuple(r) for r in reports} == {("3", "0x22", ""), ("", "", "143")}
    joined = fields(file, f"amt.type == {UPDATE} && igmp.maddr == 232.1.1.1", "igmp.saddr")
    assert {source for [sources] in joined for source in sources.split(",") if source} == {"10.0.3.2"}
    joined = fields(file, f"amt.type == {UPDATE}", "icmpv6.mldr.mar.multicast_address")
    assert any("ff3e::8000:1" in groups for [groups] in joined)


SAME = ("ip_mr_vif", "ip6_mr_vif", "ip_mr_cache", "ip6_mr_cache")
WATCH = "ip -6 -br addr show dev amt0; " + "; ".join(f"cut -c1-10,40- /proc/net/{f} | cut -d' ' -f1-4" for f in SAME)


def test_multicast_interfaces_routes_and_address_outlive_a_restart(guests: None, name: str) -> None:
    file = str(ROOT / "experiments/amt-pair.yaml")
    done = testbed("up", file, "--name", name, "--machine", "microvm", timeout=PATIENCE)
    assert done.returncode == 0, done.stderr

    def there(node: str, *argv: str) -> str:
        said = testbed("exec", name, node, "--", *argv)
        assert said.returncode == 0, said.stderr
        return str(said.stdout)

    try:
        assert "remote 10.0.2.2" in testbed("status", name, "gateway").stdout
        rows = json.loads(testbed("status", name, "relay", "--json").stdout)
        [relay] = [row for row in rows if row["name"] == "amt0"]
        assert relay["amt"] == "AMT relay 10.0.2.2 port 2268 max_tunnels 4"
        assert [a for a in relay["addresses"] if a.startswith("fe80::")]
        before = there("relay", "sh", "-c", WATCH)
        assert "amt0" in before
        assert "fe80::" in before
        there("relay", "sh", "-c", "ip link set amt0 down && ip link set amt0 up")
        assert there("relay", "sh", "-c", WATCH) == before
    finally:
        testbed("down", name)


# In the guest itself, as root. Every network namespace of a lab is given an id, which lives as long as its namespace
# does, whoever may hold it; what is on its way out is given half a minute.
KILLED = r"""
holder=$(pgrep -o -x testbed:inner) || exit 1
ip netns attach home $holder && ip netns set home 7000 && ip netns del home || exit 1
nodes=$(nsenter -t $holder -m ls /run/netns); number=7000
for node in $nodes; do number=$((number + 1)); nsenter -t $holder -m ip netns set $node $number || exit 1; done
test $(ip netns list-id | grep -c 'nsid 70') = $(($(echo "$nodes" | wc -l) + 1)) || exit 1
kill -9 $holder
left() {
    ip netns list-id | grep 'nsid 70'
    grep -a '@testbed/.*inner' /proc/net/unix
    pgrep -a -x smcrouted
    ls -d /run/*inner* /run/netns/* /tmp/*inner* /var/tmp/*inner* /dev/shm/*inner* /sys/class/net/amt* 2>/dev/null
    find /sys/fs/cgroup -name '*inner*'
}
for n in $(seq 300); do test -z "$(left)" && break; sleep 0.1; done
left
dmesg | grep unregister_netdevice
echo "$nodes"
"""


def test_a_lab_that_is_killed_leaves_no_interface_and_no_namespace(guests: None) -> None:
    made = image.find()
    assert made is not None
    guest = microvm.start(made, Size(), f"t{uuid4().hex[:8]}", {"code": Share(ROOT, "/testbed")})
    try:
        assert output(guest, "testbed", "up", "/testbed/topologies/amt-pair.yaml", "--name", "inner")[0] == 0
        status, said = output(guest, "sh", "-c", KILLED)
        assert (status, set(said.split())) == (0, set(read(PAIR).cases[0].topology.nodes)), said
    finally:
        microvm.stop(guest)


def test_a_routing_daemon_that_is_killed_fails_the_run(guests: None, name: str, tmp_path: Path) -> None:
    file = tmp_path / "killed.yaml"
    kill = "events: [{at: 1s, node: relay, command: [pkill, -KILL, smcrouted]}]\nduration: 3s\n"
    file.write_text(PAIR.read_text().replace("name: amt-pair", "name: killed") + kill)
    where = ("--name", name, "--machine", "microvm", "--results", str(tmp_path / "results"))
    done = testbed("run", str(file), *where, timeout=PATIENCE)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "[relay] smcrouted ended with signal SIGKILL" in done.stdout + done.stderr
