"""The command reference is the program's own: usage lines and tables of options are generated from it.

`TESTBED_REWRITE=1 pytest tests/test_commands.py` writes them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
import pytest
import typer

from testbed.cli.app import app
from testbed.cli.declared import declared
from tests.conftest import ROOT
from tests.kept import compare

PAGE = ROOT / "docs/commands.md"
_GENERATED = re.compile(r"(<!-- generated: (?P<name>[^\n]+) -->\n).*?(<!-- end -->\n)", re.S)


def commands(group: click.Group, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield every command that users see, by its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield f"{prefix}{name}", command


def program() -> dict[str, click.Command]:
    """Return the commands of the program by their words."""
    whole = typer.main.get_command(app())
    assert isinstance(whole, click.Group)
    return dict(commands(whole))


def reference(name: str, command: click.Command) -> str:
    """Return the generated part of a command's section."""
    context = click.Context(command, info_name=f"testbed {name}")
    lines = [f"`{' '.join([context.command_path, *command.collect_usage_pieces(context)])}`", "", command.help or ""]
    if command.params:
        lines += ["", "| argument or option | default | meaning |", "|---|---|---|"]
        lines += [f"| {words(p, context)} | {default(p)} | {meaning(p, command)} |" for p in command.params]
    return "\n".join(lines).rstrip() + "\n"


def words(param: click.Parameter, context: click.Context) -> str:
    """Return how a parameter is written on a command line."""
    if isinstance(param, click.Argument):
        return f"`{param.make_metavar(context)}`"
    value = "" if getattr(param, "is_flag", False) else f" {param.make_metavar(context).removesuffix(' RANGE')}"
    return ", ".join(f"`{name}{value}`" for name in param.opts)


def default(param: click.Parameter) -> str:
    """Return what a parameter is when it is left out."""
    if param.required:
        return "required"
    return f"`{param.default}`" if param.default not in (None, False, "") else ""


def meaning(param: click.Parameter, command: click.Command) -> str:
    """Return the help of a parameter: of an argument as it was declared, since click 8.5 drops what typer gives it."""
    text = getattr(param, "help", None) or ""
    if isinstance(param, click.Argument):
        assert command.callback is not None
        text = declared(inspect.unwrap(command.callback))[str(param.name)].what.help
    if isinstance(param.type, click.IntRange):
        text += f" ({param.type.min} to {param.type.max})"
    return text


def test_the_reference_is_that_of_the_program() -> None:
    found = program()
    text = PAGE.read_text()
    rewritten = _GENERATED.sub(lambda m: m[1] + reference(m["name"], found[m["name"]]) + m[3], text)
    compare(rewritten, PAGE)


def test_the_reference_has_every_command_once() -> None:
    assert sorted(m["name"] for m in _GENERATED.finditer(PAGE.read_text())) == sorted(program())


@pytest.mark.parametrize("name", program())
def test_every_parameter_says_what_it_is(name: str) -> None:
    command = program()[name]
    assert not [p.opts for p in command.params if not meaning(p, command)]
