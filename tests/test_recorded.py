"""A results folder is read as if an enemy had left it: what is broken is named, and the rest of the report is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from xml.etree import ElementTree

import pytest

from testbed import results
from testbed.cli import present
from testbed.errors import InputError, LabError
from testbed.metrics.measured import Measured
from testbed.metrics.recorded import Recorded
from testbed.metrics.records import Sample
from testbed.runs.again import again as report
from tests.conftest import ROOT
from tests.fuzz import report as fuzz

RUN = fuzz.RUNS / "wired"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def edited(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return act


def replaced(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    """The first place of it."""

    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return edited(name, change)


def line(name: str, number: int, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def act(data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        lines[number - 1] = change(lines[number - 1])
        return b"".join(lines)

    return edited(name, act)


def exchanged(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return act


def stamped(pattern: bytes, value: bytes) -> Callable[[bytes], bytes]:
    return lambda data: re.sub(rb'"%s": [^,}]+' % pattern, rb'"%s": %s' % (pattern, value), data, count=1)


def far(data: bytes) -> bytes:
    """A receiver's first packet arrived a year later."""
    return (int.from_bytes(data[:8]) + 365 * 86400 * 10**9).to_bytes(8) + data[8:]


def never(data: bytes) -> bytes:
    """A receiver's first packet has a number that was never sent."""
    return data[:20] + (2**62).to_bytes(8) + data[28:]


_SAMPLES, _NODE = "a/samples.jsonl", "the metrics of node a are missing"
_BULK = "the metrics of bulk are missing"
# What is done to a run, what its report says of that, and the beginning of the metrics that are missing then.
BROKEN: dict[str, tuple[Callable[[Path], None], str, str | None]] = {
    "cut off in the middle": (
        line(_SAMPLES, 3, lambda s: s[:40] + b"\n"),
        f"{_SAMPLES}, line 3: not valid JSON: {_NODE}",
        "a.",
    ),
    "not a number": (
        line(_SAMPLES, 3, stamped(b"rx_bytes", b"NaN")),
        f"{_SAMPLES}, line 3: not valid JSON: {_NODE}",
        "a.",
    ),
    "text for a number": (
        line(_SAMPLES, 2, stamped(b"rx_bytes", b'"x"')),
        f"{_SAMPLES}, line 2: not what a run writes",
        "a.",
    ),
    "below zero": (line(_SAMPLES, 2, stamped(b"rx_bytes", b"-1")), f"{_SAMPLES}, line 2: not what a run writes", "a."),
    "infinite": (line(_SAMPLES, 2, stamped(b"t", b"1e999")), f"{_SAMPLES}, line 2: not what a run writes", "a."),
    "in a million years": (
        line(_SAMPLES, 4, stamped(b"t", b"1e10")),
        f"{_SAMPLES}, line 4: its time, 1e+10, is outside",
        "a.",
    ),
    "nested": (
        line(_SAMPLES, 2, lambda s: b'{"x":' + b"[" * 20_000 + b"\n"),
        f"{_SAMPLES}, line 2: not valid JSON",
        "a.",
    ),
    "not UTF-8": (
        line(_SAMPLES, 2, lambda s: s.replace(b"eth0", b"\xff\xfe", 1)),
        f"{_SAMPLES}, line 2: not valid JSON",
        "a.",
    ),
    "an escape for a name": (
        line(_SAMPLES, 2, lambda s: s.replace(b"eth0", b"\\u001b[2J", 1)),
        f"{_SAMPLES}, line 2: not what a run writes",
        "a.",
    ),
    "an endless line": (line(_SAMPLES, 2, lambda s: s[:-1] * 20_000), f"{_SAMPLES}, line 2: longer than", "a."),
    "too many lines": (
        edited(_SAMPLES, lambda s: s + s.splitlines(keepends=True)[-1] * 100),
        "there are more lines than",
        "a.",
    ),
    "times that go back": (
        edited(_SAMPLES, lambda s: b"".join(reversed(s.splitlines(keepends=True)))),
        "its time is before that of",
        "a.",
    ),
    "a FIFO": (exchanged(_SAMPLES, os.mkfifo), f"{_SAMPLES}: not a regular file: {_NODE}", "a."),
    "a folder": (exchanged(_SAMPLES, Path.mkdir), f"{_SAMPLES}: not a regular file: {_NODE}", "a."),
    "a link": (
        exchanged(_SAMPLES, lambda p: p.symlink_to("/etc/passwd")),
        f"{_SAMPLES}: not a regular file: {_NODE}",
        "a.",
    ),
    "a link to itself": (
        exchanged(_SAMPLES, lambda p: p.symlink_to(p.name)),
        f"{_SAMPLES}: not a regular file: {_NODE}",
        "a.",
    ),
    "a huge file": (
        lambda f: os.truncate(f / "b/bulk.server.json", 1 << 40),
        "b/bulk.server.json: longer than",
        "bulk.",
    ),
    "not there": (exchanged(_SAMPLES, lambda p: None), f"{_SAMPLES}: it is not there: {_NODE}", "a."),
    "an empty report": (
        edited("b/bulk.server.json", lambda s: b""),
        f"b/bulk.server.json: it is empty: {_BULK}",
        "bulk.",
    ),
    "a list of iperf3": (
        replaced("b/bulk.server.json", b'"intervals":', b'"intervals": 7, "x":'),
        "b/bulk.server.json: not what a run",
        "bulk.",
    ),
    "a wrong total": (
        replaced("a/rtt.ping.txt", b"packets transmitted", b"packets lost"),
        "a/rtt.ping.txt: it does not say how many packets were sent and received",
        "rtt.",
    ),
    "a packet in a year": (edited("b/mc.packets", far), "b/mc.packets: a time in it is outside of the run", "mc.b."),
    "a packet never sent": (edited("b/mc.packets", never), "b/mc.packets: a packet in it was never sent", "mc.b."),
    "a source in a year": (
        edited("a/mc.sent", lambda s: b"\xff" + s[1:]),
        "a/mc.sent: a time in it is outside of the run",
        "mc.",
    ),
    "a receiver's times": (
        replaced("b/mc.receiver.json", b'"joined": ', b'"joined": 1e3, "x": '),
        "b/mc.receiver.json: not what",
        "mc.b.",
    ),
    "the machine's": (
        line("machine.jsonl", 2, stamped(b"cpu", b"1e300")),
        "machine.jsonl, line 2: not what a run writes",
        "machine.",
    ),
    "a run without end": (edited("run.json", stamped(b"seconds", b"1e10")), "run.json: it says that a run of", ""),
    "a run without beginning": (
        edited("run.json", stamped(b"monotonic", b'"x"')),
        "run.json: not what a run writes",
        "",
    ),
    "a folder for a log": (
        exchanged("dmesg.log", Path.mkdir),
        "dmesg.log: not a regular file: what the kernel said",
        None,
    ),
}


@pytest.mark.parametrize("run", fuzz.DAMAGED)
def test_a_recorded_run_is_reported_whole(run: str, tmp_path: Path) -> None:
    found = report(Path(shutil.copytree(fuzz.RUNS / run, tmp_path / "run")))
    assert (found.verdict, found.failures) == ("passed", ())
    for name, work in found.topology.workloads.items():
        # When these were recorded, nobody looked at these.
        known = set(work.workload().metrics()) - {"start_s", "mptcp_connections", "tcp_connections"}
        assert {f"{name}.{key}" for key in known} <= set(found.metrics)
    assert_sound(tmp_path / "run")


def test_the_first_sample_is_known_however_long_before_the_run_it_was(tmp_path: Path) -> None:
    """A slow machine takes seconds from the first look to t = 0, and only the last one before that is a row."""
    (tmp_path / "a").mkdir()
    rows: list[dict[str, object]] = [
        {"t": t, "interfaces": {}, "qdiscs": [], **({"up": ["e0"]} if t == 7 else {})} for t in (7, 8, 9.5, 10.5)
    ]
    (tmp_path / "a/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = Recorded(tmp_path, origin=10.0, seconds=5.0)
    assert [row.t for row in folder.rows("a/samples.jsonl", Sample, 1.0, 4096, "")] == [9.5, 10.5]
    first = folder.first("a/samples.jsonl", Sample, 4096)
    assert first is not None
    assert (first.t, first.up) == (7, ["e0"])


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_a_failure_that_names_it_and_the_rest_is_reported(kind: str, folder: Path) -> None:
    whole = report(Path(shutil.copytree(folder, folder.parent / "whole")))
    assert (whole.verdict, whole.failures) == ("passed", ())
    act, said, gone = BROKEN[kind]
    act(folder)
    found = report(folder)
    assert any(said in f for f in found.failures), found.failures
    assert found.verdict == "error"
    missing = {n for n in whole.metrics if n not in found.metrics}
    assert bool(missing) == (gone is not None), "what is not known is not there"
    assert all(n.startswith(gone or "") for n in missing)
    assert "flood.goodput_mbps" in found.metrics, "the rest is there"
    assert_sound(folder)


def assert_sound(folder: Path) -> None:
    """What a report wrote is well-formed, and has no number that JSON has not."""
    ElementTree.parse(folder / "junit.xml")

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    for name in ("metrics.json", "verdict.json"):
        json.loads((folder / name).read_text(), parse_constant=refuse)
    assert present.report(report(folder), "here")


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (exchanged("manifest.json", lambda p: None), "is not a results folder: it has no manifest.json"),
        (edited("manifest.json", lambda s: s[:30]), "manifest.json: not valid JSON"),
        (replaced("manifest.json", b'"overrides": []', b'"overrides": {}'), "manifest.json: not what a run writes"),
        (
            replaced("manifest.json", b'"settings": []', b'"settings": ["x=1"]'),
            "no case of the experiment has the settings x=1",
        ),
        (exchanged("manifest.json", lambda p: p.symlink_to("/dev/zero")), "manifest.json: not a regular file"),
        (exchanged("topology.yaml", os.mkfifo), "topology.yaml: not a regular file"),
        (exchanged("topology.yaml", lambda p: p.symlink_to("/etc/passwd")), "topology.yaml: not a regular file"),
        (exchanged("topology.yaml", lambda p: None), "it has no topology.yaml"),
    ],
)
def test_a_folder_that_does_not_say_what_it_is_about_is_refused(
    act: Callable[[Path], None], said: str, folder: Path
) -> None:
    act(folder)
    with pytest.raises(InputError, match=re.escape(said)):
        report(folder)


def test_a_topology_outside_of_the_folder_is_not_read(folder: Path) -> None:
    (folder.parent / "other.yaml").write_text("password: 1234\n")
    replaced("manifest.json", b'"overrides": []', b'"overrides": ["topology=../other.yaml"]')(folder)
    assert report(folder).verdict == "passed"
    (folder / "topology.yaml").write_text("topology: ../other.yaml\n")
    with pytest.raises(InputError, match=r"other\.yaml is itself an experiment") as caught:
        report(folder)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(("run", "node", "kind"), [("wired", "a", "interfaces"), ("wireless", "phone", "wlans")])
def test_samples_of_interfaces_without_end_are_broken(run: str, node: str, kind: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fuzz.RUNS / run, tmp_path / "run"))
    file = folder / node / "samples.jsonl"
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    for row in rows:
        row[kind] |= {f"if{n}": value for value in list(row[kind].values())[:1] for n in range(250)}
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = report(folder)
    assert [f for f in found.failures if f"there are more {kind} in it than" in f]
    assert not any(name.startswith(f"{node}.if") for name in found.metrics)
    assert_sound(folder)


def test_a_folder_of_a_node_that_is_a_link_is_not_followed(folder: Path) -> None:
    os.rename(folder / "a", folder.parent / "elsewhere")
    (folder / "a").symlink_to("../elsewhere")
    found = report(folder)
    assert not [n for n in found.metrics if n.startswith(("a.", "rtt."))]
    assert any(f.startswith("a/samples.jsonl: ") for f in found.failures)


def test_a_run_that_did_not_end_has_no_metrics_with_a_time_and_complains_of_no_missing_file(folder: Path) -> None:
    (folder / "run.json").unlink()
    shutil.rmtree(folder / "r")
    found = report(folder)
    assert found.failures == ("the run did not end",)
    assert "a.eth0.rx_bytes" not in found.metrics
    assert "bulk.goodput_mbps" in found.metrics


def test_a_last_line_that_was_never_finished_is_left_out(folder: Path) -> None:
    with (folder / "a/samples.jsonl").open("ab") as file:
        file.write(b'{"t": 17')
    assert report(folder).failures == ()


def test_what_is_derived_is_never_written_through_a_link(folder: Path) -> None:
    """Names that were predictable, and those of the files themselves."""
    victim = folder.parent / "victim"
    victim.write_text("precious\n")
    victim.chmod(0o600)
    for name in ("metrics.json", ".metrics.json", "verdict.json", ".verdict.json", "junit.xml", ".junit.xml"):
        (folder / name).symlink_to(victim)
    assert report(folder).verdict == "passed"
    assert victim.read_text() == "precious\n"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    for name in ("metrics.json", "verdict.json", "junit.xml"):
        assert stat.S_ISREG((folder / name).lstat().st_mode)
        assert stat.S_IMODE((folder / name).stat().st_mode) & 0o111 == 0


def test_a_derived_file_that_cannot_be_replaced_is_named_and_nothing_is_left(folder: Path) -> None:
    (folder / "metrics.json").mkdir()
    names = {p.name for p in folder.iterdir()}
    with pytest.raises(LabError, match=r"the results can't be written: .*/metrics\.json: Is a directory"):
        report(folder)
    assert {p.name for p in folder.iterdir()} == names


def test_a_number_that_json_does_not_have_is_refused_by_the_writer(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            results.json_text({"value": value})


def test_what_a_log_holds_does_not_spoil_the_xml(folder: Path) -> None:
    said = "\x1b[31mFAILED\x1b[0m \x1b]0;TITLE\x07 nul \x00 \ufffd \ufffe \uffff \x85 ]]> <x>&amp; \U0001fffe"
    run = json.loads((folder / "run.json").read_text())
    run["failures"] = [f"[a] t.command ended with status 1\n{said}", ""]
    (folder / "run.json").write_text(json.dumps(run))
    found = report(folder)
    suite = ElementTree.parse(folder / "junit.xml").getroot()
    first, second = suite.iter("error")
    assert first.get("message") == "[a] t.command ended with status 1"
    assert "\\x1b[31mFAILED" in (first.text or "")
    assert "]]> <x>&amp;" in (first.text or "")
    assert (second.get("message"), found.verdict) == ("", "error")


def test_metrics_that_are_not_finite_are_missing_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from testbed.metrics import nodes as metrics

    monkeypatch.setattr(metrics, "machine", lambda rows, origin: {"machine.steal_pct": Measured(float("nan"), "%")})
    found = report(folder)
    assert "machine.steal_pct" not in found.metrics
    assert found.failures == ("machine.steal_pct: it is not a finite number: this metric is missing",)
    assert_sound(folder)


def test_nothing_else_in_a_folder_is_looked_at(folder: Path) -> None:
    """Files that no run writes, of any kind, change nothing."""
    before = report(folder)
    os.mkfifo(folder / "a/x.dumpcap.log")
    (folder / "b/y.json").symlink_to("/dev/zero")
    (folder / "sampler.json").unlink()
    os.mkfifo(folder / "sampler.json")
    assert report(folder).metrics == before.metrics


def test_folders_broken_at_random_are_reported_soon_and_in_little_memory() -> None:
    """More of them: `python -m tests.fuzz.report 100000 1`."""
    done = list(fuzz.campaign(100, 20261127))
    assert [row for found in done for row in fuzz.faults(found)] == []
    assert sum(o.what == "report" for found in done for o in found.outcomes) > 50


def test_files_full_of_small_things_take_little_memory() -> None:
    """Measured in a fresh process: one that is forked from a whole suite begins with the memory of the suite."""
    words = (sys.executable, "-c", "from tests.fuzz import report; print(*report.full(), sep='\\n')")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "\n"


def test_samples_of_many_nodes_take_time_in_proportion() -> None:
    """Counted, not timed: what is read of a sample is read once for each of its interfaces and queues."""
    from testbed.metrics import nodes as metrics
    from testbed.metrics.records import Counters, Qdisc, Sample

    class Counting(list):  # type: ignore[type-arg]
        reads = 0

        def __iter__(self) -> Iterator[object]:
            Counting.reads += len(self)
            return super().__iter__()

    def reads(ports: int) -> int:
        Counting.reads = 0
        devs = {f"p{n}": Counters(*[0] * 8) for n in range(ports)}
        rows = [Sample(float(t), devs, Counting(Qdisc(d, 0, 0) for d in devs)) for t in range(5)]
        found = metrics.interfaces("s", rows, 0.0)
        assert all(isfinite(m.value) for m in found.values())
        return Counting.reads

    assert reads(200) == 10 * reads(20)


def test_everything_is_closed(folder: Path) -> None:
    report(folder)
    before = os.listdir("/proc/self/fd")
    found = Recorded(folder)
    for name in ("a/samples.jsonl", "a", "x/y", "a/samples.jsonl/z"):
        found.data(name, 10, "x")
    report(folder)
    assert os.listdir("/proc/self/fd") == before
