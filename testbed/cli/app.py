"""The command line as typer has it: `--help`, what is wrong with the words, and the completion of a shell.

Exit statuses: 0 done, 1 a check failed, 2 wrong input, 3 Linux refused something, 4 a feature is missing, 70 a bug,
130 and 143 interrupted by SIGINT (Ctrl-C) and SIGTERM, 141 nobody reads what is printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Signature, signature, unwrap
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import click
import typer
from typer.core import TyperCommand

from testbed import __version__
from testbed.cli.declared import Argument, Option, declared
from testbed.cli.examples import epilog
from testbed.cli.process import perform
from testbed.cli.verbs import VERBS, Verb, find

_HELP: Mapping[str, Any] = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A verb whose help has that of its arguments: click 8.5 resets what typer 0.24 sets."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help of arguments and options."""
        own = declared(unwrap(self.callback)) if self.callback is not None else {}
        for param in self.params:
            if isinstance(param, click.Argument) and getattr(param, "help", None) is None:
                param.help = own[str(param.name)].what.help
        super().format_options(ctx, formatter)


def app(verb: str = "") -> typer.Typer:
    """Return the command line with one verb, or with all of them: to make all takes longer than some of them do."""
    made = typer.Typer(
        name="testbed",
        help="Network-namespace labs from YAML: bring them up, run workloads, measure and report.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=dict(_HELP),
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
    settings = {**_HELP, **(verb.settings or {})}
    made = to.command(name, cls=Command, hidden=verb.hidden, epilog=epilog(name), context_settings=settings)
    made(_typed(verb.function()))


def _typed(function: Callable[..., None]) -> Callable[..., None]:
    """Return a verb with its declarations in typer's words."""

    @wraps(function)
    def made(**given: object) -> None:
        function(**given)

    hints = get_type_hints(function, include_extras=True)
    its = {name: Annotated[get_args(hints[name])[0], _told(one.what)] for name, one in declared(function).items()}
    parameters = [p.replace(annotation=its[n]) for n, p in signature(function).parameters.items()]
    made.__annotations__ = its
    made.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return made


def _told(what: Argument | Option) -> Any:
    if isinstance(what, Argument):
        return typer.Argument(help=what.help, dir_okay=what.dir_okay, autocompletion=what.autocompletion)
    return typer.Option(*what.names.split(), help=what.help, metavar=what.metavar, min=what.min, max=what.max)


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
    if (verb := find(sys.argv[1:])) is not None:
        return verb()
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
