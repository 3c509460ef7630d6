"""The JSON Schema that editors use (`# yaml-language-server`): the same language as the one that is checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from testbed.errors import InputError
from testbed.language import described, parsing
from testbed.language.schema import schema
from testbed.loading import read
from tests.kept import Say, compare, say

__all__ = ["say"]
ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("topologies/*.yaml"), *ROOT.glob("experiments/*.yaml")])
BAD = sorted(f for kind in ("key", "missing", "type") for f in (ROOT / "tests/errors").glob(f"{kind}-*.yaml"))


def faults(file: Path) -> list[str]:
    data: Any = parsing.parse(file.read_text(), file.name).data
    return [e.message for e in jsonschema.Draft202012Validator(schema()).iter_errors(data)]


def test_it_is_a_schema_of_draft_2020_12() -> None:
    assert schema()["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    jsonschema.Draft202012Validator.check_schema(schema())


def test_the_kept_copy_is_what_the_command_prints(say: Say) -> None:
    status, out, _ = say("schema")
    assert status == 0
    assert json.loads(out) == schema()
    compare(out, ROOT / "docs/topology.schema.json")


def properties() -> dict[tuple[str, str], dict[str, Any]]:
    """Every property of the schema, by its model and its name."""
    made = schema()
    return {
        (n, k): v for n, part in [("", made), *made["$defs"].items()] for k, v in part.get("properties", {}).items()
    }


def test_every_key_says_what_it_means() -> None:
    found = properties()
    assert len(found) > 200
    assert [".".join(at) for at, value in found.items() if not value.get("description", "").strip()] == []


def test_no_key_is_described_that_there_is_not() -> None:
    known = set(properties())
    assert [(model, key) for model, key, _ in described.rows() if (model, key) not in known] == []


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_every_topology_and_experiment_is_valid_and_names_the_schema(file: Path) -> None:
    assert faults(file) == []
    first = file.read_text().splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / name).resolve() == ROOT / "docs/topology.schema.json"


@pytest.mark.parametrize("file", BAD, ids=lambda f: f.stem)
def test_an_editor_sees_unknown_and_missing_keys_and_wrong_types(file: Path) -> None:
    assert faults(file)
    with pytest.raises(InputError):
        read(file)
