"""The table of verbs: each has the function that is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from testbed.cli.declared import plain


class Verb(NamedTuple):
    """The function of a verb, and how it is registered."""

    module: str  # of testbed.cli
    name: str
    hidden: bool = False
    settings: Mapping[str, Any] | None = None

    def function(self) -> Callable[..., None]:
        """Import the function."""
        found: Callable[..., None] = getattr(import_module(f"testbed.cli.{self.module}"), self.name)
        return found


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
    "tell-mptcp": Verb("mptcp", "tell", hidden=True),
    "serve-request": Verb("requests", "serve_request", hidden=True),
    "collect-request": Verb("requests", "collect_request", hidden=True),
    "mptcp": Group(
        "Show the MPTCP connections of a node, and follow their events.",
        {
            "monitor": Verb("mptcp", "monitor"),
            "connections": Verb("mptcp", "connections"),
            "subflows": Verb("mptcp", "subflows"),
            "addresses": Verb("mptcp", "addresses"),
        },
    ),
    "machine": Group(
        "Add, list and remove machines that ssh reaches.",
        {
            "add": Verb("places", "machine_add"),
            "ls": Verb("places", "machine_ls"),
            "rm": Verb("places", "machine_rm"),
        },
    ),
    "image": Group(
        "Build, list and remove images of the guest of a microVM.",
        {
            "build": Verb("places", "image_build"),
            "ls": Verb("places", "image_ls"),
            "rm": Verb("places", "image_rm"),
        },
    ),
}


def find(words: Sequence[str]) -> Callable[[], None] | None:
    """Return what a command line in plain form asks for; None for one that a parser is to read, or to refuse."""
    verbs: Mapping[str, Verb | Group] = VERBS
    for at, word in enumerate(words):
        match verbs.get(word):
            case Group(_, inner):
                verbs = inner
            case Verb(settings=None) as verb:
                function = verb.function()
                found = plain(function, words[at + 1 :])
                return None if found is None else partial(function, **found)
            case _:
                return None
    return None
