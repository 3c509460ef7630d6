"""Data to YAML text, which `parsing` reads back as the same data."""

from __future__ import annotations

from typing import Any

import yaml

from testbed.language.parsing import scalar

_WIDTH = 120  # characters of a line


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes every text that would be read as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return true for everything."""
        return True


def _quoted(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text else None if isinstance(scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _quoted)


def written(data: Any) -> str:
    """Return plain data as YAML, with the innermost lists and mappings in one line: `parse` gives the same data."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=_WIDTH
    )
    return text
