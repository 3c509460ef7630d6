"""Labs in tests: one that is used by hand, one that is measured, and one that needs what not every kernel has."""

import pytest

TWO_HOSTS = "../../topologies/two-hosts.yaml"


def test_the_server_is_one_hop_away(lab):
    net = lab(TWO_HOSTS)
    done = net.exec("client", ["ping", "-c", "1", "-t", "1", "server"])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("rate", [10, 20])
def test_a_flow_gets_most_of_the_cable(lab, rate):
    net = lab(TWO_HOSTS, sets=[f"links.cable.rate={rate}mbit"])
    run = net.run(sets=["workloads.bulk.iperf3.seconds=2", "workloads.rtt.ping.seconds=2"])
    assert 0.8 * rate < run.metrics["bulk.goodput_mbps"] < rate
    assert net.metrics["rtt.loss_pct"] == 0


@pytest.mark.testbed_feature("netem")
def test_the_far_host_is_200_ms_away(lab):
    net = lab("../../topologies/netem-demo.yaml", machine="here")
    done = net.exec("client", ["ping", "-c", "3", "-q", "far"])
    shortest = done.stdout.rpartition(" = ")[2].split("/")[0]  # rtt min/avg/max/mdev = 197.9/...
    assert 170 < float(shortest) < 230, done.stdout
