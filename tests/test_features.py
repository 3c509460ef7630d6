"""Features as data: what each says, which machine findings lead to, and how doctor shows them."""

from __future__ import annotations

import pytest

from testbed import features
from testbed.cli import present
from testbed.features import Feature
from testbed.machines import choose
from testbed.machines.guest.ready import Fact
from testbed.machines.probe import here
from testbed.machines.probe.here import Finding, refusal

NETEM, VETH, IPERF3 = features.QDISCS["netem"], features.VETH, features.IPERF3
LONG = "the kernel refuses it: " + "No such file or directory, and " * 9 + "/a/path/" + "x" * 90


def found(*absent: Feature, among: tuple[Feature, ...] = features.ALL) -> tuple[Finding, ...]:
    return tuple(Finding(f, f not in absent, LONG if f in absent else "it worked") for f in among)


def test_no_two_features_have_one_name() -> None:
    assert len({f.name for f in features.ALL}) == len(features.ALL)


@pytest.mark.parametrize("feature", features.ALL, ids=lambda f: f.name)
def test_every_feature_says_how_to_get_it_here_and_that_the_microvm_has_it(feature: Feature) -> None:
    local, _, other = feature.cure.rpartition(", or ")
    assert other == "--machine microvm"
    assert local


def test_a_module_is_named_in_the_cure() -> None:
    assert NETEM.cure == "modprobe sch_netem, or --machine microvm"
    assert features.HWSIM.cure == "modprobe mac80211_hwsim radios=0, or --machine microvm"


def test_a_lab_runs_here_when_everything_is_present() -> None:
    choice = choose.pick(found())
    assert str(choice) == "machine here: this kernel and its tools offer all that is required"
    assert choice.missing == ()


def test_a_lab_runs_in_the_microvm_when_the_kernel_lacks_something_and_the_reason_is_named() -> None:
    choice = choose.pick(found(NETEM))
    assert choice.machine == "microvm"
    assert choice.why == "this kernel lacks netem (delay, jitter, loss, duplicate, corrupt, reorder)"
    assert [f.feature for f in choice.missing] == [NETEM]


def test_a_missing_program_is_not_blamed_on_the_kernel_and_sends_no_lab_away() -> None:
    choice = choose.pick(found(IPERF3, features.PING))
    assert str(choice) == "machine here: this machine lacks iperf3 (workload iperf3), ping (workload ping)"
    assert refusal(choice.missing).args[0].count("apt-get install") == 2
    assert choose.pick(found(IPERF3, NETEM)).machine == "microvm", "the kernel lacks something as well"
    assert choose.pick(found(features.IPERF3_MPTCP)).machine == "microvm", "no package of Debian 12 has it"


def test_what_only_a_database_could_allow_is_cured_by_the_database() -> None:
    channel = features.channel("DE", 5975, "nodes.ap")
    lacking = here.cured(found(channel, features.REGDB, among=(channel, features.REGDB)))
    assert [f.feature.cure for f in lacking] == [features.REGDB.cure] * 2
    refused = here.cured(found(channel, among=(channel, features.REGDB)))
    assert refused[0].feature.cure == "choose another frequency or country"


def test_what_a_guest_needs_is_told_apart_from_what_makes_it_faster() -> None:
    facts = (
        Fact("qemu", False, "qemu-system-x86_64, which is not in PATH", "apt-get install qemu-system-x86"),
        Fact("kvm", False, "there is no /dev/kvm", "without it QEMU emulates the processor", needed=False),
        Fact("disk", True, "70.1 GiB free at /root/.cache"),
    )
    assert present.guests(facts, 60).splitlines() == [
        "microVM",
        "  NO   qemu   qemu-system-x86_64, which is not in PATH",
        "                apt-get install qemu-system-x86",
        "  no   kvm    there is no /dev/kvm",
        "                without it QEMU emulates the processor",
        "  yes  disk   70.1 GiB free at /root/.cache",
    ]


def test_a_summary_counts_and_names_what_is_missing() -> None:
    assert present.summary(found(NETEM, among=(VETH, NETEM)), "here") == "machine here: 1 of 2 features; without netem"
    assert present.summary(found(among=(VETH,)), "server") == "machine server: 1 of 1 feature"


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_table_is_as_wide_as_the_terminal(width: int) -> None:
    rows = present.features(found(NETEM, features.HOSTAPD_BE), width).splitlines()
    assert max(map(len, rows)) <= width
    assert max(map(len, rows)) > width - 20


def test_a_lab_stays_here_when_that_is_asked_for() -> None:
    choice = choose.pick(found(NETEM), "here")
    assert choice.machine == "here"
    assert choice.missing


def test_another_machine_is_not_judged_by_this_one() -> None:
    assert choose.choose(features.ALL, "ssh://lab").machine == "ssh://lab"


def test_where_no_namespace_can_be_made_only_that_is_said() -> None:
    none = found(*features.ALL)
    assert choose.pick(none).why == LONG
    assert str(refusal(none)) == LONG


@pytest.mark.parametrize("absent", [(), (NETEM,), features.ALL], ids=["all", "one", "none"])
def test_the_table_fits_100_columns_and_has_every_feature_once(absent: tuple[Feature, ...]) -> None:
    rows = present.features(found(*absent)).splitlines()
    assert max(map(len, rows)) <= 100
    firsts = [r.split()[:2] for r in rows if r[2:5] in ("yes", "NO ")]
    assert sorted(firsts) == sorted(["NO" if f in absent else "yes", f.name] for f in features.ALL)
    assert [r for r in rows if r and not r.startswith(" ")] == ["kernel", "MPTCP", "multicast", "Wi-Fi", "tools"]


def test_the_table_says_how_to_get_what_is_missing_and_only_that() -> None:
    rows = present.features(found(NETEM)).splitlines()
    assert [r.strip() for r in rows if "to get it" in r] == ["to get it: modprobe sch_netem, or --machine microvm"]
