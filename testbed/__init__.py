"""Network-namespace labs from YAML: `load` a topology, bring it `up`, run and measure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.loading import load
    from testbed.runs.bring_up import up

__version__ = "0.1.0"
__all__ = ["__version__", "load", "up"]


def __getattr__(name: str) -> Any:
    # Late, so that `testbed exec` does not pay for the parser and its models.
    from importlib import import_module

    homes = {"load": "testbed.loading", "up": "testbed.runs.bring_up"}
    if name not in homes:
        raise AttributeError(f"module 'testbed' has no attribute {name!r}")
    return getattr(import_module(homes[name]), name)
