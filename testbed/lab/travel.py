"""Encode and decode steps as JSON in which every record names its class (pure).

A step may hold one of the requests or probes that the drivers define; no others are decoded.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING, TypeAlias, cast

from msgspec import Raw, Struct
from msgspec.json import Decoder, Encoder

from testbed import drivers
from testbed.steps import Configure, Delete, Netlink, Probe, Request, Run, Spawn, Step, Wait, Write

_DRIVERS = tuple(import_module(f"{drivers.__name__}.{m.name}") for m in pkgutil.iter_modules(drivers.__path__))


def _defined(base: type[Struct]) -> tuple[type[Struct], ...]:
    """Return the subclasses of a base that the drivers define, in the order of their names."""
    kinds = {kind for module in _DRIVERS for kind in vars(module).values() if isinstance(kind, type)}
    return tuple(sorted((k for k in kinds if issubclass(k, base) and k.__module__ != base.__module__), key=str))


REQUESTS, PROBES = _defined(Request), _defined(Probe)
if TYPE_CHECKING:
    _Requests: TypeAlias = Request
    _Messages: TypeAlias = Request
    _Probes: TypeAlias = Probe
else:  # mypy cannot read a union that is made of a list
    _Requests = reduce(or_, REQUESTS)
    _Messages = reduce(or_, (k for k in REQUESTS if hasattr(k, "encode")))
    _Probes = reduce(or_, PROBES)


class _Delete(Struct, tag="Delete"):
    added: _Messages


class _Configure(Struct, tag="Configure"):
    node: str
    request: _Requests | _Delete
    at: float | None


class _Wait(Struct, tag="Wait"):
    node: str
    probe: _Probes
    within: float
    process: str
    urge: tuple[_Requests | _Delete, ...]
    again: tuple[_Requests | _Delete, ...]
    every: float
    steady: float
    inline: bool


_ENCODER = Encoder()
_DECODER = Decoder(list[_Configure | _Wait | Write | Run | Spawn])


def encode(steps: Iterable[Step]) -> Raw:
    """Encode steps."""
    return Raw(_ENCODER.encode(tuple(steps)))


def decode(data: bytes | Raw) -> list[Step]:
    """Decode steps; msgspec.ValidationError says what is wrong with them."""
    return [_step(s) for s in _DECODER.decode(bytes(data))]


def _step(came: _Configure | _Wait | Write | Run | Spawn) -> Step:
    if isinstance(came, _Configure):
        return Configure(came.node, _request(came.request), came.at)
    if isinstance(came, _Wait):
        urge, again = tuple(map(_request, came.urge)), tuple(map(_request, came.again))
        rest = (came.every, came.steady, came.inline)
        return Wait(came.node, came.probe, came.within, came.process, urge, again, *rest)
    return came


def _request(came: _Requests | _Delete) -> Request:
    return Delete(cast(Netlink, came.added)) if isinstance(came, _Delete) else came
