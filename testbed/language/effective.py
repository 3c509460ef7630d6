"""The file of one case with everything resolved, as it is written to a results folder and read from there."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from testbed.errors import InputError
from testbed.language.experiment import EXPERIMENT
from testbed.language.explain import problems
from testbed.language.parsing import parse
from testbed.language.sound import filled, mapping
from testbed.language.topology import Topology
from testbed.language.writing import written


def resolved(text: str, name: str) -> Topology:
    """Return the topology of a file that `effective` wrote, unchecked; InputError if another file is there."""
    document = parse(text, name)
    data = {k: v for k, v in mapping(document).items() if k not in EXPERIMENT}
    try:
        return Topology.model_validate(data)
    except ValidationError as e:
        raise InputError(*problems(document, Topology, e.errors(include_url=False), EXPERIMENT)) from e


def effective(data: dict[str, Any], seed: int) -> str:
    """Return the file of one case with everything resolved, which can be run by itself."""
    return written({**filled(data), **({"seed": seed} if seed else {})})
