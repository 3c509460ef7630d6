"""A program that runs in a node as long as the lab: started once the node is configured, and awaited until ready."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import Field

from testbed.drivers.facts import LogSays, Serving
from testbed.drivers.mptcpize import Wrapper, needs, wrapped
from testbed.features import Feature
from testbed.spec import Spec
from testbed.steps import START, Spawn, Step, Wait
from testbed.units import Argv, Expression

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
# The logs of steps and of daemons that roles start are in the same folder.
_TAKEN = re.compile(r"(run|event)-\d+|hostapd|wpa_supplicant|smcrouted")


class Ready(Spec):
    """When a service is ready: something listens on a port of its node, or a line of its log matches."""

    port: int | None = Field(None, ge=1, le=65535, description="TCP or UDP port that something in the node listens on")
    regex: Expression | None = Field(None, description="A regular expression that a line of its output matches")


class Service(Spec):
    """A program and its arguments as a list; its output goes to NODE/NAME.log."""

    argv: Argv
    mptcp: Wrapper | None = Field(None, description="What makes it speak MPTCP, as of a `command`")
    ready: Ready | None = Field(None, description="What `up` and `run` wait for, at most a minute; nothing if left out")


def faults(services: dict[str, Service]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (path below `services`, sentence) for each fault."""
    for name, service in services.items():
        if not _NAME.fullmatch(name):
            what = "a letter or digit, then letters, digits, _ and -, at most 32 in all"
            yield (name,), f"{name!r} is not a valid name of a service: {what}"
        elif _TAKEN.fullmatch(name):
            yield (name,), f"{name!r} is not available as the name of a service: another program's log has that name"
        if service.ready is not None and (service.ready.port is None) == (service.ready.regex is None):
            yield (name, "ready"), "`ready` needs exactly one of the keys port and regex"


def requires(services: dict[str, Service]) -> tuple[Feature, ...]:
    """Return the features that services need."""
    return tuple(f for service in services.values() for f in needs(service.mptcp))


def steps(node: str, services: dict[str, Service]) -> Iterator[Step]:
    """Yield the services of a node, and what they are awaited by."""
    for name, service in services.items():
        yield Spawn(node, name, wrapped(service.argv, service.mptcp))
        if service.ready is not None and service.ready.port is not None:
            yield Wait(node, Serving(service.ready.port), START, name)
        elif service.ready is not None and service.ready.regex is not None:
            yield Wait(node, LogSays(f"{node}/{name}.log", service.ready.regex), START, name)
