"""The documented commands that take a guest do what their page shows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.machine.conftest import Run
from tests.test_docs import SECTIONS, commands, explained, marked, perform

pytestmark = pytest.mark.machine

# With the tests of Wi-Fi, which look at the runs of the same experiments.
GROUPED = [
    pytest.param(section, marks=pytest.mark.xdist_group("wifi" if "mlo" in text else "measure"))
    for section, text in SECTIONS.items()
    if marked(text, "machine")
]
_EXPERIMENT = re.compile(r"testbed run experiments/([a-z0-9-]+)\.yaml\s*")


@pytest.mark.parametrize("section", GROUPED)
def test_commands_do_what_the_page_shows(section: str, tmp_path: Path, ran: Callable[[str], Run]) -> None:
    for name in ("topologies", "experiments", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    found = [c for _, body in marked(SECTIONS[section], "machine") for c in commands(body)]
    if len(found) == 1 and (one := _EXPERIMENT.fullmatch(found[0].text)):
        done = ran(one[1]).done
        results = [(done.stderr + done.stdout, done.returncode)]
    else:
        results = perform(found, tmp_path, spaces=(), patience=600)
    faults = [explained(c, *result) for c, result in zip(found, results, strict=True)]
    assert not any(faults), "\n\n".join(filter(None, faults))
