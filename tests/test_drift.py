"""What of the links was not as the file has it is named, and what events did is not."""

from __future__ import annotations

from testbed.language.topology import Topology
from testbed.metrics.records import Counters, Planned, Qdisc, Sample
from testbed.report.drift import drift

LAB = {
    "name": "l",
    "nodes": {"a": {}, "b": {}},
    "links": [{"name": "wire", "ends": ["a:e0", "b:e0"], "rate": "1mbit"}, {"ends": ["a:e1", "b:e1"]}],
}
PLANNED = Planned({"a": {"e0": ["10.0.1.1"], "e1": ["10.0.2.1"]}, "b": {"e0": ["10.0.1.2"], "e1": ["10.0.2.2"]}})


def sample(
    node: str, up: tuple[str, ...] = ("e0", "e1"), there: tuple[str, ...] = ("e0", "e1"), queues: str = "e0:tbf"
) -> Sample:
    last = {"a": 1, "b": 2}[node]
    kinds = [pair.split(":") for pair in queues.split()]
    return Sample(
        1.0,
        {name: Counters(0, 0, 0, 0, 0, 0, 0, 0) for name in there},
        [Qdisc(dev, 0, 0, kind) for dev, kind in kinds],
        addresses={f"e{n}": [f"10.0.{n + 1}.{last}"] for n in range(2) if f"e{n}" in up},
        up=list(up),
    )


def said(a: tuple[Sample, Sample], b: tuple[Sample, Sample] | None = None, **more: object) -> list[tuple[str, str]]:
    whole = {"a": a, "b": b or (sample("b"), sample("b"))}
    return list(drift(Topology.model_validate({**LAB, **more}), PLANNED, whole))


def test_links_as_the_file_has_them_are_no_doubt() -> None:
    assert said((sample("a"), sample("a"))) == []
    assert list(drift(Topology.model_validate(LAB), PLANNED, {})) == [], "an older run has no such samples"


def test_what_commands_did_is_named_when_the_run_began_and_once() -> None:
    bare = sample("a", queues="")
    text = "when the run began, it had no shaping, although the file asks for one"
    assert said((bare, bare)) == [("flows through a.e0", text)]
    netem = sample("a", queues="e0:tbf e1:netem")
    text = "when the run began, it had a queue discipline (netem) that the file does not ask for"
    assert said((netem, netem)) == [("flows through a.e1", text)]


def test_several_interfaces_are_one_doubt() -> None:
    down = sample("a", up=())
    text = "when the run ended, it was down, and no event of the file did that"
    both = sample("b", up=("e0",))
    assert said((sample("a"), down), (sample("b"), both)) == [("flows through a.e0, a.e1, b.e1", text)]
    gone = sample("a", there=("e0",))
    assert said((sample("a"), gone)) == [
        ("flows through a.e1", "when the run ended, it was not there, and no event of the file did that")
    ]


def test_what_an_event_did_is_no_doubt() -> None:
    down, events = sample("a", up=("e1",)), [{"at": "1s", "link": "wire", "down": True}]
    assert said((sample("a"), down), events=events) == []
    assert said((sample("a"), down), events=[{"at": "1s", "node": "a", "command": ["x"]}]) == []
    assert said((sample("a"), sample("a", up=("e0",))), events=events) != [], "another link"
