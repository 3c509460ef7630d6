"""What a lab's holder is asked, and what it answers to each: records that are decoded by their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NotRequired, TypeAlias, TypedDict

from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder, Encoder

from testbed import __version__, words
from testbed.errors import InputError, LabError
from testbed.lab import travel
from testbed.lab.messages import BROKEN
from testbed.steps import Step

_Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class NotUnderstoodError(LabError):
    """What came is no request: its sender is told, and is not listened to any more."""


class Asked(Struct, frozen=True, kw_only=True, tag_field="verb", tag=str.lower):
    """A request; `version` is that of the program which asks."""

    version: str = __version__


class Exec(Asked, frozen=True):
    """Run a command in a node on the three file descriptors beside this; the answer is its exit status.

    It runs in the first of `places` that is a folder.
    """

    node: str
    argv: tuple[bytes, ...]
    env: tuple[bytes, ...]
    places: tuple[bytes, ...]

    def __post_init__(self) -> None:
        words.arguments(self.argv)
        words.assignments(self.env)
        if not [words.folder(place) for place in self.places]:
            raise ValueError("a command needs a folder to run in")


class Enter(Asked, frozen=True):
    """A command is going to be run from outside in a UTS and a mount namespace of its own, which are beside this.

    Whatever has one of them is ended with this connection. `testbed exec` writes this, and Leave, without msgspec.
    """

    node: str


class Leave(Asked, frozen=True):
    """End what is left of the command of this connection; the answer comes when it is gone."""


class Change(Asked, frozen=True):
    """Perform steps in a lab that stands; afterwards it is what `whole` makes."""

    perform: Raw
    whole: Raw
    about: dict[str, Any]
    hosts: str


class Run(Asked, frozen=True):
    """Play a run in a lab that stands, and keep its results in a folder."""

    steps: Raw
    folder: str
    seconds: _Seconds


class Look(Asked, frozen=True):
    """Tell what the kernel says of a node's links, addresses and radios."""

    node: str


class Status(Asked, frozen=True):
    """Tell what the lab is and has."""


class Plan(Asked, frozen=True):
    """Tell the steps that made the lab."""


class Keep(Asked, frozen=True):
    """Let the lab outlive the program that made it."""


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


_ENCODER = Encoder()
_HEAD = Decoder(_Head)
_QUESTION: Decoder[Question] = Decoder(Question)
# What every version asks alike, so that one can look at, keep and end the labs of another.
_ALIKE = {"status", "keep", "down"}
_VALUES: Mapping[type[Asked], Decoder[Any]] = {
    Exec: Decoder(int),
    Look: Decoder(dict[str, list[bytes]]),
    Status: Decoder(StatusRow),
}


def command(node: str, argv: Sequence[str], env: Mapping[str, str], places: Sequence[str]) -> Exec:
    """Return the request for a command; InputError says what of it can't be one."""
    if not isinstance(node, str):
        raise InputError(f"the name of a node must be a text, not {node!r}")
    try:
        return Exec(node, words.arguments(argv), words.environment(env), tuple(map(words.folder, places)))
    except ValueError as e:
        raise InputError(f"exec in {node or 'the sandbox'}: {e}") from e


def encode(question: Asked) -> bytes:
    """Return a request as it travels."""
    try:
        return _ENCODER.encode(question)
    except UnicodeEncodeError as e:
        raise InputError(f"a text that can't be encoded: {e}") from e


def decode(lab: str, data: bytes) -> Question:
    """Return a request that came; NotUnderstoodError when it is none."""
    try:
        head = _HEAD.decode(data)
        if head.version == __version__ or head.verb in _ALIKE:
            return _QUESTION.decode(data)
    except BROKEN as e:
        raise NotUnderstoodError(f"lab {lab}: a request that can't be understood: {e}") from e
    raise NotUnderstoodError(
        f"lab {lab}: it was made by testbed {__version__}, which does not understand this; `testbed down {lab}` ends it"
    )


def steps(lab: str, data: Raw) -> list[Step]:
    """Return the steps of a request; NotUnderstoodError when they are none."""
    try:
        return travel.decode(data)
    except BROKEN as e:
        raise NotUnderstoodError(f"lab {lab}: steps that can't be understood: {e}") from e


def value(question: Asked, data: Raw) -> Any:
    """Return the value of an answer by the type that this request is answered with."""
    try:
        if isinstance(question, Plan):
            return travel.decode(data)
        decoder = _VALUES.get(type(question))
        return None if decoder is None else decoder.decode(bytes(data))
    except BROKEN as e:
        raise LabError(f"an answer that can't be understood, perhaps of another version of testbed: {e}") from e
