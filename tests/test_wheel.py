"""What `pip install netns-testbed` brings: built of this tree by its own build backend, without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from testbed import __version__
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = (sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


def test_the_wheel_is_named_after_the_one_place_that_has_the_version(wheel: Path) -> None:
    assert wheel.name == f"netns_testbed-{__version__}-py3-none-any.whl"


def test_the_wheel_has_each_file_of_the_package_and_each_example_and_nothing_else(wheel: Path) -> None:
    package = {f.relative_to(ROOT) for f in (ROOT / "testbed").rglob("*") if f.is_file() and f.suffix != ".pyc"}
    examples = {
        Path("testbed/examples", f.relative_to(ROOT))
        for folder in ("topologies", "experiments")
        for f in (ROOT / folder).iterdir()
    }
    with ZipFile(wheel) as archive:
        names = [Path(n) for n in archive.namelist() if ".dist-info/" not in n]
    assert len(examples) > 20
    assert sorted(names) == sorted(package | examples)
