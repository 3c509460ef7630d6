"""What `pip install netns-testbed` brings: built of this tree by its own build backend, without a network."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

from testbed import __version__
from tests.conftest import ROOT


def built(target: str, tree: Path, folder: Path) -> Path:
    words = (sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder))
    subprocess.run(words, cwd=tree, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


def inside(wheel: Path) -> dict[str, int]:
    """Return the checksum of each file in a wheel, but for what describes the distribution."""
    with ZipFile(wheel) as archive:
        return {i.filename: i.CRC for i in archive.infolist() if ".dist-info/" not in i.filename}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_named_after_the_one_place_that_has_the_version(wheel: Path) -> None:
    assert wheel.name == f"netns_testbed-{__version__}-py3-none-any.whl"


def test_the_wheel_has_each_file_of_the_package_and_each_example_and_nothing_else(wheel: Path) -> None:
    package = {f.relative_to(ROOT) for f in (ROOT / "testbed").rglob("*") if f.is_file() and f.suffix != ".pyc"}
    examples = {
        Path("testbed/examples", f.relative_to(ROOT))
        for folder in ("topologies", "experiments")
        for f in (ROOT / folder).rglob("*.yaml")
    }
    assert len(examples) > 20
    assert sorted(inside(wheel)) == sorted(map(str, package | examples))


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = built("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as files:
        files.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    assert inside(built("wheel", tree, tmp_path / "wheel")) == inside(wheel)
