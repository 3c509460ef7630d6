"""Quantities as tc(8) writes them (`20mbit`, `15ms`, `0.1%`, `64kb`), read into bit/s, seconds, fractions, bytes."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from math import isfinite
from reprlib import repr as shorten
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from testbed import words

_NUMBER = re.compile(r"(-?)([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([a-zA-Z%]{0,20})")
_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
_RATES = {**_BITS, "bps": 8.0, "kbps": 8e3, "mbps": 8e6, "gbps": 8e9, "tbps": 8e12}
_TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_SIZES = {"b": 1.0, "kb": 1024.0, "mb": 1024.0**2, "gb": 1024.0**3}
_PERCENT = {"%": 0.01}
_WORD = r"[a-z0-9_]+"


def _quantity(value: Any, units: dict[str, float], what: str, example: str) -> float:
    known = ", ".join(units)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"a {what} is a number with a unit, as in {example}")
    match = _NUMBER.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(
            f"{shorten(value)} is not a valid {what}: write a number and a unit ({known}), as in {example}"
        )
    sign, number, unit = match.groups()
    if sign:
        raise ValueError(f"the {what} {value} is negative")
    if not unit:
        raise ValueError(f"the {what} {value} has no unit ({known}): write one, as in {example}")
    if unit.lower() not in units:
        raise ValueError(f"{unit!r} is not a unit for a {what} ({known}): write one of these, as in {example}")
    return float(number) * units[unit.lower()]


def rate(value: Any) -> int:
    """Read a rate into bit/s; `bps` and its multiples are bytes a second, as in tc(8)."""
    found = round(_quantity(value, _RATES, "rate", "20mbit"))
    if not 8 <= found <= 10**12:
        raise ValueError(f"the rate {value} is outside 8bit to 1tbit")
    return found


def time(value: Any) -> float:
    """Read a time into seconds."""
    found = _quantity(value, _TIMES, "time", "15ms")
    if found > 86400:
        raise ValueError(f"the time {value} is more than a day (86400s)")
    return found


def moment(value: Any) -> float:
    """Read a time of the run, or a length of time in it, into seconds, which need no unit."""
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0:
        value = f"{value:.9f}s"
    found = _quantity(value, _TIMES, "time", "15s")
    if found > 86400:
        raise ValueError(f"the time {value} is more than a day (86400s)")
    return found


def size(value: Any) -> int:
    """Read a size into bytes; `kb` is 1024 bytes, as in tc(8)."""
    found = round(_quantity(value, _SIZES, "size", "64kb"))
    if not 0 < found < 1 << 32:
        raise ValueError(f"the size {value} is outside 1b to just below 4gb")
    return found


def memory(value: Any) -> int:
    """Read an amount of memory into bytes."""
    found = round(_quantity(value, _SIZES, "size", "2gb"))
    if not 32 << 20 <= found <= 1 << 50:
        raise ValueError(f"the memory {value} is outside 32mb to 1048576gb: a lab itself takes some megabytes")
    return found


def percentage(value: Any) -> float:
    """Read a percentage into a fraction (0-1)."""
    found = _quantity(value, _PERCENT, "percentage", "0.1%")
    if found > 1:
        raise ValueError(f"{value} is more than 100%")
    return found


def _schema(example: str, units: dict[str, float]) -> WithJsonSchema:
    known = "|".join(units)
    return WithJsonSchema({"type": "string", "pattern": rf"^[0-9]+(\.[0-9]+)?\s*({known})$", "examples": [example]})


def _seconds() -> WithJsonSchema:
    text = {"type": "string", "pattern": rf"^[0-9]+(\.[0-9]+)?\s*({'|'.join(_TIMES)})$"}
    return WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, text], "examples": ["15s", 15]})


def _word(value: str) -> str:
    if not re.fullmatch(_WORD, value):
        raise ValueError(f"{value!r} is not a name that the kernel knows: these have a-z, 0-9 and _ only")
    return value


def _argument(value: str) -> str:
    words.argument(value)
    return value


def _argv(value: tuple[str, ...]) -> tuple[str, ...]:
    words.arguments(value)
    return value


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as e:
        raise ValueError(f"{value!r} is not a valid regular expression: {e}") from e
    return value


def _host(value: str) -> str:
    try:
        return str(ip_address(value))
    except ValueError:
        return value  # judged where it is used, with its place in the network


@lru_cache(maxsize=8192)
def interface_of(address: str) -> IPv4Interface | IPv6Interface:
    """Return `address/length` as an object: it takes 40 us, and every check of a file asks again."""
    return ip_interface(address)


def _address(value: str) -> str:
    try:
        return str(interface_of(value)) if "/" in value else value
    except ValueError:
        return value


Rate = Annotated[int, BeforeValidator(rate), _schema("20mbit", _RATES)]
Time = Annotated[float, BeforeValidator(time), _schema("15ms", _TIMES)]
Moment = Annotated[float, BeforeValidator(moment), _seconds()]  # a time or a length in seconds: 15 or 15s
Size = Annotated[int, BeforeValidator(size), _schema("64kb", _SIZES)]
Memory = Annotated[int, BeforeValidator(memory), _schema("2gb", _SIZES)]
Percentage = Annotated[float, BeforeValidator(percentage), _schema("0.1%", _PERCENT)]
Word = Annotated[str, AfterValidator(_word), WithJsonSchema({"type": "string", "pattern": f"^{_WORD}$"})]
Expression = Annotated[str, AfterValidator(_expression)]  # a regular expression (re)
Host = Annotated[str, AfterValidator(_host)]  # an IP address in its canonical form
Address = Annotated[str, AfterValidator(_address)]  # the same with a prefix length
# A command as a list: each word is judged at its own place, then the whole.
Argument = Annotated[str, AfterValidator(_argument)]
Argv = Annotated[tuple[Argument, ...], Field(min_length=1), AfterValidator(_argv)]
