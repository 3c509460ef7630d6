"""The verb `init`: a file of one's own to start from, which is one of the examples."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from textwrap import wrap
from typing import Annotated

from testbed.cli.declared import Argument, Option
from testbed.errors import InputError

_KEY = re.compile(r"([a-z_]+):")
_WIDTH = 90  # characters of a description in the list
_PACKAGE = Path(__file__).parent.parent
_INSTALLED = _PACKAGE / "examples"  # what a wheel brings; a checkout has the same folders beside the package


def init(
    template: Annotated[
        str, Argument(help="An example; all are listed when it is left out", autocompletion=lambda: names())
    ] = "",
    file: Annotated[str, Argument(help="The file to write, TEMPLATE.yaml when left out; - is standard output")] = "",
    force: Annotated[bool, Option("--force", help="Overwrite the file if it exists")] = False,
    as_json: Annotated[bool, Option("--json", help="Print JSON")] = False,
) -> None:
    """Write an example to a file of your own, complete in itself; without TEMPLATE, list the examples."""
    if not template:
        _list(as_json)
        return
    text = written(template)
    if file == "-":
        sys.stdout.write(text)
        return
    name = file or f"{template}.yaml"
    try:
        with open(name, "w" if force else "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as e:
        raise InputError(f"{name}: the file exists: choose another name, or overwrite it with --force") from e
    except OSError as e:
        raise InputError(f"{name}: the file can't be written: {e.strerror}") from e
    if as_json:
        print(json.dumps({"template": template, "file": name}))
        return
    print(f"{name}: a copy of {template}\ntestbed check {name}   testbed plan {name}   testbed run {name}")


def names() -> list[str]:
    """Return the names of all templates."""
    return sorted({f.stem for kind in ("topologies", "experiments") for f in _folder(kind).glob("*.yaml")})


def written(template: str) -> str:
    """Return the text of a template: a topology, with the experiment of the same name laid over it."""
    from testbed.language import explain

    if template not in names():
        hint = explain.suggest(template, names())
        raise InputError(f"{template!r} is not a template{f' ({hint})' if hint else ''}: `testbed init` lists them")
    experiment = _folder("experiments") / f"{template}.yaml"
    if not experiment.exists():
        return "".join(sections((_folder("topologies") / f"{template}.yaml").read_text()).values())
    over = sections(experiment.read_text())
    named = over.pop("topology").partition(":")[2].strip()
    under = sections((experiment.parent / named).read_text())
    under["nodes"] = _comment(under["description"]) + under["nodes"].lstrip("\n")
    first = {key: over.pop(key) for key in ("name", "description")}
    rest = {key: text for key, text in under.items() if key not in first and key not in over}
    return "\n".join(text.strip("\n") + "\n" for text in ("".join(first.values()), *rest.values(), *over.values()))


def sections(text: str) -> dict[str, str]:
    """Return the text of each top-level key of a file, with the comments above it."""
    found: dict[str, str] = {}
    above, key = "", ""
    for row in text.splitlines(keepends=True):
        if row.startswith("# yaml-language-server"):
            continue  # a path that is right beside the example alone
        if begins := _KEY.match(row):
            key = begins[1]
            found[key] = above + row
            above = ""
        elif row[:1] in " -" and key:
            found[key] += above + row
            above = ""
        else:
            above += row
    return found


def _comment(description: str) -> str:
    rows = [row.strip() for row in description.partition(":")[2].splitlines()]
    return "".join(f"# {row}\n" for row in rows if row not in ("", "|"))


def _folder(kind: str) -> Path:
    return (_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent) / kind


def _list(as_json: bool) -> None:
    from testbed.cli import present
    from testbed.language.parsing import parse

    told = {}
    for name in names():
        parts = sections(written(name))
        told[name] = " ".join(str(parse(parts["description"], name).data["description"]).split())
    if as_json:
        print(json.dumps([{"name": name, "description": text} for name, text in told.items()], indent=1))
        return
    rows = []
    for name, text in told.items():
        first, *more = wrap(re.split(r"(?<=[.?]) ", text)[0], _WIDTH)
        rows += [(name, first), *(("", part) for part in more)]
    print(present.columns(rows))
