"""Steps, requests and errors come out of a message as they went into it."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from msgspec import Struct

from testbed import drivers, steps
from testbed.drivers import tc
from testbed.errors import InputError, LabError, Problem, TestbedError, Unsupported
from testbed.lab import answers, asked, asking, travel
from testbed.loading import read
from testbed.plan import run as schedule
from testbed.plan.lab import plan
from testbed.steps import Configure, Delete, Probe, Request
from tests.conftest import ROOT

FILES = sorted([*ROOT.glob("topologies/*.yaml"), *ROOT.glob("experiments/*.yaml")])


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_every_step_of_a_plan_arrives_as_it_was_sent(file: Path) -> None:
    made = plan(read(file, ()).cases[0].topology)
    sent = (*made.steps, *schedule.run_steps(made))
    came = travel.decode(travel.encode(sent))
    assert came == list(sent)
    assert [type(s) for s in came] == [type(s) for s in sent]
    assert [str(s) for s in came] == [str(s) for s in sent]
    undone = [Configure(s.node, Delete(s.request)) for s in sent if "addr add" in str(s) and isinstance(s, Configure)]  # type: ignore[arg-type]
    assert travel.decode(travel.encode(undone)) == undone


def test_whatever_a_driver_can_ask_or_await_may_travel() -> None:
    """Every tagged record of a driver is a request, a probe, or a part of a request."""
    found = set()
    for module in pkgutil.iter_modules(drivers.__path__):
        for kind in vars(importlib.import_module(f"testbed.drivers.{module.name}")).values():
            if isinstance(kind, type) and issubclass(kind, Struct) and kind.__struct_config__.tag:
                found.add(kind)
    parts = {*get_args(tc.Options), Request, Probe, *get_args(steps.Step)}
    assert found - parts == {*travel.REQUESTS, *travel.PROBES}
    assert not set(travel.REQUESTS) & set(travel.PROBES)
    assert len(found) > 30


@pytest.mark.parametrize(
    "data",
    [
        b"5",
        b"[5]",
        b'["rubbish"]',
        b'[{"type": "Configure", "node": "a", "request": {"type": "Evil"}, "at": null}]',
        b'[{"type": "Configure", "node": 5, "request": {"type": "LinkSet", "name": "eth0"}, "at": null}]',
        b'[{"type": "Run", "node": "a", "argv": "ls"}]',
        b'[{"type": "Wait", "node": "a", "probe": {"type": "LinkSet", "name": "eth0"}}]',
    ],
)
def test_what_is_no_list_of_steps_is_refused(data: bytes) -> None:
    with pytest.raises(LabError, match="the steps of a request are not valid"):
        asking.steps("lab", msgspec.Raw(data))


@pytest.mark.parametrize(
    "error",
    [
        LabError("[a] no\nsuch thing: \u00e9 \x1b"),
        Unsupported("feature x"),
        InputError(Problem("wrong", "lab.yaml", 3, 4, "text: 5", 2, "did you mean"), "and a sentence"),
    ],
)
def test_an_error_arrives_as_what_it_was(error: TestbedError) -> None:
    came = answers.decode(answers.encode(answers.failed(error)))
    assert isinstance(came, answers.Failed)
    with pytest.raises(type(error)) as raised:
        answers.throw(came)
    assert str(raised.value) == str(error)
    assert raised.value.exit_status == error.exit_status


def test_an_error_of_a_class_that_is_not_known_there_is_the_nearest_that_is() -> None:
    class OwnError(LabError):
        pass

    assert answers.failed(OwnError("own")) == answers.Failed("LabError", "own")


ODD = {
    "no word": ((), {}, "at least one word"),
    "an empty program": (("",), {}, "here it is empty"),
    "NUL in a word": (("echo", "a\0b"), {}, "NUL"),
    "half a character": (("echo", "\ud800"), {}, "encoded"),
    "a number": (("sleep", 5), {}, "must be a text, not 5"),
    "a text": ("ls -l", {}, "not one text"),
    "NUL in a variable": (("true",), {"A": "x\0y"}, "NUL"),
    "= in a name": (("true",), {"A=B": "x"}, "it is empty or has a `=`"),
    "no name": (("true",), {"": "x"}, "it is empty or has a `=`"),
    "a variable that is a number": (("true",), {"A": 5}, "must be a text"),
}


@pytest.mark.parametrize(("argv", "env", "says"), ODD.values(), ids=ODD)
def test_a_command_that_can_not_be_one_is_said_before_it_is_sent(argv: object, env: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        asking.command("a", argv, env, ("/",))  # type: ignore[arg-type]


def test_a_command_may_have_bytes_that_are_no_text() -> None:
    made = asking.command("a", ("echo", b"\xff".decode(errors="surrogateescape")), {"N\udcff": "\udcfe"}, ("/",))
    assert asking.decode("lab", asked.encode(made)) == made
    assert made.argv[1] == b"\xff"
    assert made.env == (b"N\xff=\xfe",)
