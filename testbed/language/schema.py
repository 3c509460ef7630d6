"""The language as a JSON Schema, for editors."""

from __future__ import annotations

from typing import Any

from testbed.language.described import rows
from testbed.language.topology import Topology


def schema() -> dict[str, Any]:
    """Return the language as a JSON Schema (draft 2020-12) for editors."""
    found = Topology.model_json_schema(by_alias=True)
    experiment = {
        "topology": {"type": "string", "description": "The file that this experiment builds on"},
        "matrix": {
            "type": "object",
            "additionalProperties": {"type": "array"},
            "description": "Values of each --set path",
        },
        "repeat": {"type": "integer", "minimum": 1},
        "seed": {"type": "integer"},
    }
    found["properties"] |= experiment
    # An experiment takes `nodes` from its topology; a role or a node may be written without content.
    del found["required"]
    found["anyOf"] = [{"required": ["name", "nodes"]}, {"required": ["topology"]}]
    found["properties"]["nodes"]["additionalProperties"] = {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}
    for model, key, text in rows():
        part = found["$defs"].get(model, {}) if model else found
        if key in part.get("properties", {}):
            part["properties"][key].setdefault("description", text)
    for part in (found, *found["$defs"].values()):
        for value in part.get("properties", {}).values():
            if "pattern" in value and not isinstance(value.get("default"), str):
                value.pop("default", None)  # a quantity as it is held, not as it is written
    return {**found, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "testbed topology"}
