"""The bytes of every qdisc request, read back by pyroute2's independent decoder."""

from __future__ import annotations

import struct
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from testbed.drivers import tc
from testbed.drivers.tc import GilbertElliott, Shape
from testbed.linux import uapi, wire


class Space:
    """Stands for a namespace where every interface has index 7."""

    def index(self, ifname: str) -> int:
        return 7

    def claim(self, ifname: str, node: str | None = None) -> int:
        raise AssertionError(ifname)

    def namespace(self, node: str) -> int:
        raise AssertionError(node)

    def radio(self, name: str) -> str:
        raise AssertionError(name)

    def wiphy(self, radio: str) -> int:
        raise AssertionError(radio)


def decoded(qdisc: tc.Qdisc) -> Any:
    body = qdisc.encode(Space()).body
    message = tcmsg(wire.header(len(body), uapi.RTM_NEWQDISC, 0, 0) + body)
    message.decode()
    return message


def options(qdisc: tc.Qdisc) -> dict[int, bytes]:
    fields = wire.attributes(qdisc.encode(Space()).body, 20)
    assert qdisc.options is not None
    return wire.attributes(fields[2], 24 if qdisc.kind == "netem" else 0)


def test_a_rate_is_a_token_bucket_of_that_many_bytes_a_second() -> None:
    (qdisc,) = tc.shape("eth0", Shape(rate=50_000_000))
    message = decoded(qdisc)
    assert (message["index"], message["parent"], message["handle"]) == (7, tc.ROOT, 0x20000)
    assert message.get_attr("TCA_KIND") == "tbf"
    parms = message.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    assert parms["rate"] == 6_250_000
    assert parms["limit"] == tc.depth(50_000_000)
    assert struct.unpack("=I", options(qdisc)[6]) == (25_000,), "TCA_TBF_BURST: 4 ms of the rate"


def test_a_rate_beyond_32_bits_goes_into_the_64_bit_attribute() -> None:
    (qdisc,) = tc.shape("eth0", Shape(rate=100 * 10**9))
    assert struct.unpack("=Q", options(qdisc)[4]) == (12_500_000_000,)


def test_netem_is_outside_and_the_rate_inside() -> None:
    outer, inner = tc.shape(
        "eth0", Shape(rate=10**7, delay=0.015, jitter=0.002, loss=0.01, duplicate=0.02, corrupt=0.03)
    )
    assert (outer.kind, inner.kind, inner.parent) == ("netem", "tbf", 0x10001)
    qopt = wire.attributes(outer.encode(Space()).body, 20)[2][:24]
    _, limit, loss, gap, duplicate, _ = struct.unpack("=6I", qopt)
    assert limit >= 1000
    assert loss == pytest.approx(0.01 * 2**32, rel=1e-6)
    assert duplicate == pytest.approx(0.02 * 2**32, rel=1e-6)
    assert gap == 0
    found = options(outer)
    assert struct.unpack("=q", found[10]) == (15_000_000,), "TCA_NETEM_LATENCY64, ns"
    assert struct.unpack("=q", found[11]) == (2_000_000,), "TCA_NETEM_JITTER64, ns"
    assert struct.unpack("=II", found[4])[0] == pytest.approx(0.03 * 2**32, rel=1e-6)
    assert str(outer) == (
        "tc qdisc replace dev eth0 root handle 1: netem limit 1000 delay 15ms 2ms loss 1% duplicate 2% corrupt 3%"
    )


def test_reordering_asks_for_a_gap_of_one() -> None:
    (qdisc,) = tc.shape("eth0", Shape(delay=0.01, reorder=0.25))
    assert struct.unpack("=6I", wire.attributes(qdisc.encode(Space()).body, 20)[2][:24])[3] == 1
    assert struct.unpack("=II", options(qdisc)[3])[0] == pytest.approx(2**30, rel=1e-6)


def test_a_gilbert_elliott_model_is_nested_and_counts_survival_in_the_bad_state() -> None:
    (qdisc,) = tc.shape("eth0", Shape(loss=GilbertElliott(p=0.01, r=0.2, bad=0.9, good=0.001)))
    model = struct.unpack("=4I", wire.attributes(options(qdisc)[5])[2])
    assert [round(v / 0xFFFFFFFF, 6) for v in model] == [0.01, 0.2, 0.1, 0.001]


@pytest.mark.parametrize("name", ["normal", "pareto", "paretonormal"])
def test_a_distribution_is_that_of_tc(name: str) -> None:
    files = [f for root in ("/usr/lib", "/usr/share") for f in Path(root).glob(f"**/tc/{name}.dist")]
    if not files:
        pytest.skip("iproute2's distribution tables are not installed")
    rows = [row for row in files[0].read_text().splitlines() if not row.startswith("#")]
    theirs = sorted(int(word) for row in rows for word in row.split())
    (qdisc,) = tc.shape("eth0", Shape(delay=0.01, jitter=0.001, distribution=name))
    ours = struct.unpack("=4096h", options(qdisc)[2])
    assert list(ours) == sorted(ours)
    # Theirs is partly a sample, so the far tails differ; 99 % of the quantiles lie within 0.15 deviations.
    close = [abs(a - b) < 0.15 * 8192 for a, b in zip(ours, theirs, strict=True)]
    assert sum(close) > 0.97 * len(close)
    assert mean(ours) == pytest.approx(mean(theirs), abs=0.03 * 8192)


def test_uniform_jitter_needs_no_table() -> None:
    (qdisc,) = tc.shape("eth0", Shape(delay=0.01, jitter=0.001, distribution="uniform"))
    assert 2 not in options(qdisc)


@pytest.mark.parametrize(("queue", "limit", "attribute"), [("fq_codel", 100, 2), ("codel", 50, 2), ("fq", 70, 1)])
def test_a_discipline_sits_inside_the_rate_and_counts_packets(queue: str, limit: int, attribute: int) -> None:
    outer, inner = tc.shape("eth0", Shape(rate=10**7, queue=queue, limit=limit))
    assert (outer.kind, inner.kind, inner.parent, inner.handle) == ("tbf", queue, 0x20001, 0x30000)
    assert struct.unpack("=I", options(inner)[attribute]) == (limit,)


def test_a_limit_in_bytes_is_the_depth_of_the_token_bucket() -> None:
    (qdisc,) = tc.shape("eth0", Shape(rate=10**7, queue="bfifo", limit=65536))
    assert decoded(qdisc).get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")["limit"] == 65536


def test_no_shaping_is_no_qdisc() -> None:
    assert tc.shape("eth0", Shape()) == ()
