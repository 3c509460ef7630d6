"""Values that the language takes and that many people mean otherwise (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from testbed.language.document import Fault, Path

_BYTES = re.compile(r"\s*([0-9.]+)\s*([kmgt]?)bps\s*", re.IGNORECASE)
_KINDS = ("links", "workloads", "events")  # sections that have rates


def rates_in_bytes(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield rates in bytes per second, as in tc(8): elsewhere Mbps are megabits."""
    for section in _KINDS:
        for path, value in _rates(data.get(section), (section,)):
            if match := _BYTES.fullmatch(value):
                number, prefix = match[1], match[2].lower()
                bits = f"{8 * float(number):.12g}{prefix}bit"
                yield (
                    path,
                    f"{value} is {bits} here, in bytes per second as in tc(8), and not {number}{prefix}bit",
                    f"write {number}{prefix}bit or {bits}",
                )


def _rates(data: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the rates that are written in a part of a file, with their places."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        if key == "rate" and isinstance(value, str):
            yield (*path, key), value
        else:
            yield from _rates(value, (*path, key))
