"""A command line in plain form means what typer takes it for; any other is left to typer."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import typer

from testbed.cli.app import app
from testbed.cli.declared import plain
from testbed.cli.examples import EXAMPLES
from testbed.cli.verbs import VERBS, Group, Verb, find
from tests.kept import Say, say

__all__ = ["say"]

PLAIN = [
    "up a.yaml",
    "up a.yaml -n x --set a=1 --set b=2 --recreate -m here --cpus 4 --memory 512 --json",
    "up --dry-run a.yaml",
    "status",
    "status lab",
    "status lab node --json",
    "down a b c",
    "down --all",
    "run a.yaml --results out --name x",
    "report results/x/latest --json",
    "check - --json",
    "shell lab node",
    "doctor --fresh",
    "machine add name ssh://u@h --ssh-option Port=22 --ssh-option User=x --program /p",
    "machine ls",
    "image rm --all",
    "image build --mirror http://m/ --again",
    "schema",
    "run-case f --case 0 --name x --results r",
]
LEFT = [
    "",
    "up",
    "up a.yaml b.yaml",
    "up --help",
    "up --name",
    "up --name=x a.yaml",
    "up a.yaml --name x --name y",
    "up a.yaml --cpus 0",
    "up a.yaml --cpus four",
    "up a.yaml --set -x",
    "up tests",  # a folder
    "up -- a.yaml",
    "statsu",
    "machine",
    "machine add name",
    "exec lab node ls",  # its own form, in `program`
    "--version",
]


@pytest.mark.parametrize("words", PLAIN)
def test_a_plain_command_line_means_what_typer_takes_it_for(words: str) -> None:
    given = words.split()
    verb, command = VERBS[given[0]], typer.main.get_command(app())
    assert isinstance(command, click.Group)
    command = command.commands[given.pop(0)]
    if isinstance(verb, Group):
        assert isinstance(command, click.Group)
        verb, command = verb.verbs[given[0]], command.commands[given.pop(0)]
    assert isinstance(verb, Verb)
    found = plain(verb.function(), given)
    assert found is not None
    parsed = command.make_context("", list(given)).params
    defaults = {p.name: p.default for p in command.params}
    assert {n: v for n, v in parsed.items() if n in found} == {n: _clicks(v) for n, v in found.items()}
    assert {n for n, v in parsed.items() if v not in (defaults[n], None, False, ())} <= set(found)


def _clicks(value: object) -> object:
    return str(value) if isinstance(value, Path) else tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("words", LEFT)
def test_what_is_not_plain_is_left_to_typer(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert find(words.split()) is None


@pytest.mark.parametrize("words", [(name,) for name, v in VERBS.items() if isinstance(v, Verb) and not v.hidden])
def test_help_has_each_argument_in_words_and_examples_that_the_verb_takes(words: tuple[str, ...], say: Say) -> None:
    status, out, _ = say(*words, "-h")
    assert (status, say(*words, "--help")) == (0, (0, out, ""))
    body, _, examples = out.partition("Examples:\n")
    arguments = body.partition("Arguments:\n")[2].partition("Options:")[0]
    for row in (r for r in arguments.splitlines() if r[2:3].strip()):
        assert len(row.split()) > 2, f"no words about {row}"
    for line in EXAMPLES[words[0]]:
        assert f"  {line}\n" in examples
        assert line.startswith(f"testbed {words[0]}")


def test_a_misspelt_verb_is_suggested_once(say: Say) -> None:
    assert say("statsu")[2].count("Did you mean 'status'?") == 1


def test_every_example_is_of_a_verb() -> None:
    inner = {name for v in VERBS.values() if isinstance(v, Group) for name in v.verbs}
    assert set(EXAMPLES) <= {*VERBS, *inner}
