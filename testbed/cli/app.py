"""The command line: a table of verbs, each with the function that is imported when it is asked for.

Exit statuses: 0 done, 1 a check failed, 2 wrong input, 3 Linux refused something, 4 a feature is missing, 70 a bug,
130 and 143 interrupted by SIGINT (Ctrl-C) and SIGTERM, 141 nobody reads what is printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import unwrap
from typing import Annotated, Any, NamedTuple, NoReturn, get_type_hints

import click
import typer
from typer.core import TyperCommand

from testbed import __version__
from testbed.cli.process import perform


class Verb(NamedTuple):
    """The function of a verb, and how it is registered."""

    module: str  # of testbed.cli
    function: str
    hidden: bool = False
    settings: Mapping[str, Any] | None = None


class Group(NamedTuple):
    """Verbs of one thing."""

    help: str
    verbs: Mapping[str, Verb]


VERBS: Mapping[str, Verb | Group] = {
    "init": Verb("init", "init"),
    "check": Verb("files", "check"),
    "plan": Verb("files", "plan"),
    "up": Verb("up", "up"),
    "status": Verb("labs", "status"),
    "exec": Verb("labs", "exec_", settings={"ignore_unknown_options": True, "allow_interspersed_args": False}),
    "shell": Verb("labs", "shell"),
    "down": Verb("labs", "down"),
    "run": Verb("runs", "run"),
    "report": Verb("runs", "report"),
    "schema": Verb("files", "schema"),
    "doctor": Verb("places", "doctor"),
    "run-case": Verb("requests", "run_case", hidden=True),
    "serve-request": Verb("requests", "serve_request", hidden=True),
    "collect-request": Verb("requests", "collect_request", hidden=True),
    "machine": Group(
        "Machines that ssh reaches: make them known, list and forget them.",
        {
            "add": Verb("places", "machine_add"),
            "ls": Verb("places", "machine_ls"),
            "rm": Verb("places", "machine_rm"),
        },
    ),
    "image": Group(
        "The image of the microVM's guest: make it, list and remove what is cached.",
        {
            "build": Verb("places", "image_build"),
            "ls": Verb("places", "image_ls"),
            "rm": Verb("places", "image_rm"),
        },
    ),
}


class Command(TyperCommand):
    """A verb whose help has that of its arguments: click 8.5 resets what typer 0.24 sets."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of arguments and options."""
        declared = get_type_hints(unwrap(self.callback), include_extras=True) if self.callback else {}
        for param in self.params:
            if isinstance(param, click.Argument) and getattr(param, "help", None) is None:
                info = getattr(declared.get(param.name or ""), "__metadata__", (None,))[0]
                param.help = getattr(info, "help", None)
        super().format_options(ctx, formatter)


def app(verb: str = "") -> typer.Typer:
    """Return the command line with one verb, or with all of them: to make all takes longer than some of them do."""
    made = typer.Typer(
        name="testbed",
        help="Network-namespace labs from YAML: bring them up, run workloads in them, measure, judge.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        suggest_commands=not hasattr(click.exceptions, "NoSuchCommand"),  # of click 8.5, which suggests by itself
    )
    made.callback(invoke_without_command=True)(_options)
    for name, row in ({verb: VERBS[verb]} if verb in VERBS else VERBS).items():
        if isinstance(row, Verb):
            _register(made, name, row)
            continue
        group = typer.Typer(name=name, help=row.help)
        for inner, its in row.verbs.items():
            _register(group, inner, its)
        made.add_typer(group, no_args_is_help=True)
    return made


def _register(to: typer.Typer, name: str, verb: Verb) -> None:
    function: Callable[..., None] = getattr(import_module(f"testbed.cli.{verb.module}"), verb.function)
    settings = dict(verb.settings) if verb.settings is not None else None
    to.command(name=name, cls=Command, hidden=verb.hidden, context_settings=settings)(function)


def _options(version: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    if version:
        print(f"testbed {__version__}")
        raise typer.Exit


def command_line() -> None:
    """Do what `sys.argv` asks for; errors are raised as they are, but for what click says of the words themselves.

    Click's own `main` takes the end of an input, or of a pipe, for its user's wish to abort, with status 1.
    """
    if "_TESTBED_COMPLETE" in os.environ:  # the shell asks
        app()()
    command = typer.main.get_command(app(*sys.argv[1:2]))
    try:
        with command.make_context("testbed", sys.argv[1:]) as context:
            command.invoke(context)
    except click.ClickException as e:
        e.show()
        raise SystemExit(e.exit_code) from e
    except click.exceptions.Exit as e:
        raise SystemExit(e.exit_code) from e


def main() -> NoReturn:
    """Run the command line of `sys.argv`."""
    perform(command_line)
