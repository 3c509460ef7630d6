"""Steps as they travel between processes: JSON in which every record names its class, decoded by type (pure).

The fields of a step that may hold one of many requests, probes or options have protocols as their types. What may
come in their place is listed here, and nothing else is understood.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias, cast

from msgspec import Raw, Struct
from msgspec.json import Decoder, Encoder

from testbed.drivers.amt import AmtAdd, RelayFound
from testbed.drivers.bound import Bound
from testbed.drivers.facts import Capturing, FileHas, Listening
from testbed.drivers.hwsim import RadioAdd
from testbed.drivers.link import (
    AddressAdd,
    AutoAddressOff,
    BridgeAdd,
    LinkSet,
    LinksUp,
    NamespaceAdd,
    PortAdd,
    Silence,
    VethAdd,
)
from testbed.drivers.membership import Joined
from testbed.drivers.mptcp import EndpointAdd, EndpointFlags, LimitsSet, PathManagerHas
from testbed.drivers.nl80211 import ChannelSet, CountrySet, FragmentationSet, LinksAre, WiphyMove, WlanAdd
from testbed.drivers.route import RouteAdd, RuleAdd
from testbed.drivers.smcroute import Forwarding
from testbed.drivers.sysctl import SysctlSet
from testbed.drivers.tc import Limit, Netem, Plug, Qdisc, QdiscDel, Tbf
from testbed.drivers.wpa_ctrl import Control, Controlled
from testbed.steps import Configure, Delete, Netlink, Probe, Request, Run, Spawn, Step, Wait, Write

# Those that hold nothing which is one of many; each of the others has a form of its own below.
Plain: TypeAlias = (
    AddressAdd
    | AmtAdd
    | AutoAddressOff
    | Bound
    | BridgeAdd
    | ChannelSet
    | Control
    | CountrySet
    | EndpointAdd
    | EndpointFlags
    | FragmentationSet
    | LimitsSet
    | LinkSet
    | NamespaceAdd
    | PortAdd
    | RadioAdd
    | RouteAdd
    | RuleAdd
    | SysctlSet
    | VethAdd
    | WiphyMove
    | WlanAdd
)
Probes: TypeAlias = (
    Capturing
    | Controlled
    | FileHas
    | Forwarding
    | Joined
    | LinksAre
    | LinksUp
    | Listening
    | PathManagerHas
    | RelayFound
    | Silence
)
_Options: TypeAlias = Limit | Netem | Plug | Tbf


class _Qdisc(Struct, tag="Qdisc"):
    dev: str
    kind: str
    handle: int
    parent: int
    options: _Options | None


class _QdiscDel(Struct, tag="QdiscDel"):
    added: _Qdisc


class _Delete(Struct, tag="Delete"):
    added: Plain


_Requests: TypeAlias = Plain | _Qdisc | _QdiscDel | _Delete


class _Configure(Struct, tag="Configure"):
    node: str
    request: _Requests
    at: float | None


class _Wait(Struct, tag="Wait"):
    node: str
    probe: Probes
    within: float
    process: str
    urge: tuple[_Requests, ...]
    again: tuple[_Requests, ...]
    every: float
    steady: float
    here: bool


_ENCODER = Encoder()
_DECODER = Decoder(list[_Configure | _Wait | Write | Run | Spawn])


def encode(steps: Iterable[Step]) -> Raw:
    """Return steps as they travel."""
    return Raw(_ENCODER.encode(tuple(steps)))


def decode(data: bytes | Raw) -> list[Step]:
    """Return the steps that came; msgspec.ValidationError says what of them is none."""
    return [_step(s) for s in _DECODER.decode(bytes(data))]


def _step(came: _Configure | _Wait | Write | Run | Spawn) -> Step:
    if isinstance(came, _Configure):
        return Configure(came.node, _request(came.request), came.at)
    if isinstance(came, _Wait):
        urge, again = tuple(map(_request, came.urge)), tuple(map(_request, came.again))
        rest = (came.every, came.steady, came.here)
        return Wait(came.node, cast(Probe, came.probe), came.within, came.process, urge, again, *rest)
    return came


def _request(came: _Requests) -> Request:
    if isinstance(came, _Qdisc):
        return _qdisc(came)
    if isinstance(came, _QdiscDel):
        return QdiscDel(_qdisc(came.added))
    if isinstance(came, _Delete):
        return Delete(cast(Netlink, came.added))
    return came


def _qdisc(came: _Qdisc) -> Qdisc:
    return Qdisc(came.dev, came.kind, came.handle, came.parent, came.options)
