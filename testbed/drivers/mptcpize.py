"""How a program that opens TCP sockets is made to open MPTCP ones: mptcpize(8), or GODEBUG of Go 1.21 and later."""

from __future__ import annotations

from typing import Literal

from testbed import features
from testbed.features import Feature

Wrapper = Literal["mptcpize", "godebug"]
_BEFORE: dict[Wrapper, tuple[str, ...]] = {
    "mptcpize": ("mptcpize", "run"),
    "godebug": ("env", "GODEBUG=multipathtcp=1"),  # go.dev/doc/godebug
}


def wrapped(argv: tuple[str, ...], by: Wrapper | None) -> tuple[str, ...]:
    """Return the command that starts a program in that way."""
    return (*_BEFORE[by], *argv) if by is not None else argv


def needs(by: Wrapper | None) -> tuple[Feature, ...]:
    """Return the features that it needs."""
    return () if by is None else (features.MPTCP, *((features.MPTCPIZE,) if by == "mptcpize" else ()))
