"""The requests to a lab's holder, and the types of its answers: records that are decoded by type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired, TypeAlias, TypedDict

from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder

from testbed import __version__, words
from testbed.errors import InputError
from testbed.lab import travel
from testbed.lab.answers import NotUnderstoodError
from testbed.lab.asked import Asked, Keep, Status, understood
from testbed.lab.messages import BROKEN
from testbed.steps import Step

_Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class Exec(Asked, frozen=True):
    """Run a command in a node on the three file descriptors sent along; the answer is its exit status.

    It runs in the first of `folders` that is a folder.
    """

    node: str
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    folders: tuple[bytes, ...]

    def __post_init__(self) -> None:
        words.arguments(self.argv)
        words.assignments(self.env)
        if not [words.folder(folder) for folder in self.folders]:
            raise ValueError("a command needs a folder to run in")


class Enter(Asked, frozen=True):
    """Announce a command run from outside, in its own UTS and mount namespaces, whose descriptors are sent along.

    The holder ends all processes in these namespaces when this connection closes. `testbed exec` sends this and Leave
    without msgspec.
    """

    node: str


class Leave(Asked, frozen=True):
    """End the remaining processes of this connection's command; the answer comes when they have ended."""


class Change(Asked, frozen=True):
    """Perform steps in a running lab; afterwards it is the lab that the steps `whole` make."""

    perform: Raw
    whole: Raw
    about: dict[str, Any]
    hosts: str


class Run(Asked, frozen=True):
    """Play a run in a running lab, and write its results to a folder."""

    steps: Raw
    folder: str
    seconds: _Seconds


class Look(Asked, frozen=True):
    """Return the kernel's view of a node's links, addresses and radios."""

    node: str


class Plan(Asked, frozen=True):
    """Return the steps that made the lab."""


class Down(Asked, frozen=True):
    """End the lab."""


class ProcessRow(TypedDict):
    """A process of the plan."""

    node: str
    name: str
    pid: int
    status: int | None


class StatusRow(TypedDict):
    """The answer to Status."""

    name: str
    state: str
    version: str
    began: float
    topology: str
    interfaces: dict[str, list[tuple[str, str]]]
    nodes: list[str]
    processes: list[ProcessRow]
    resources: dict[str, dict[str, str | int | float]]
    file: NotRequired[str]
    run: NotRequired[str]


Question: TypeAlias = Exec | Enter | Leave | Change | Run | Look | Status | Plan | Keep | Down


class _Head(Struct):
    verb: str
    version: str


_HEAD = Decoder(_Head)
_QUESTION: Decoder[Question] = Decoder(Question)
# Requests that are the same in every version: a version can look at, keep and end the labs of another.
_ALIKE = {"status", "keep", "down"}
_VALUES: Mapping[type[Asked], Decoder[Any]] = {
    Exec: Decoder(int),
    Look: Decoder(dict[str, list[bytes]]),
    Status: Decoder(StatusRow),
}


def command(node: str, argv: Sequence[str], env: Mapping[str, str], folders: Sequence[str]) -> Exec:
    """Return the request to run a command; raise InputError if Linux would not accept it."""
    if not isinstance(node, str):
        raise InputError(f"the name of a node must be a text, not {node!r}")
    try:
        return Exec(node, words.arguments(argv), words.environment(env), tuple(map(words.folder, folders)))
    except ValueError as e:
        raise InputError(f"exec in {node or 'the sandbox'}: {e}") from e


def decode(lab: str, data: bytes) -> Question:
    """Decode a request; raise NotUnderstoodError if it is not a valid one."""
    try:
        head = _HEAD.decode(data)
        if head.version == __version__ or head.verb in _ALIKE:
            return _QUESTION.decode(data)
    except BROKEN as e:
        raise NotUnderstoodError(f"lab {lab}: a request is not valid: {e}") from e
    raise NotUnderstoodError(f"lab {lab}: a request of testbed {head.version} is not understood")


def steps(lab: str, data: Raw) -> list[Step]:
    """Decode the steps of a request; raise NotUnderstoodError if they are not valid."""
    try:
        return travel.decode(data)
    except BROKEN as e:
        raise NotUnderstoodError(f"lab {lab}: the steps of a request are not valid: {e}") from e


def value(question: Asked, data: Raw) -> Any:
    """Decode the value of an answer to this request."""
    if isinstance(question, Plan):
        try:
            return travel.decode(data)
        except BROKEN as e:
            raise NotUnderstoodError(f"an answer is not valid: {e}") from e
    decoder = _VALUES.get(type(question))
    return None if decoder is None else understood(decoder, data)
