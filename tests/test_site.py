"""The documentation as a site: MkDocs finds nothing to warn of, and a page fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import REQUIRED, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as `make docs` does."""
    if find_spec("material") is None:
        missing = pytest.fail if "mkdocs" in REQUIRED else pytest.skip
        missing("mkdocs-material is not installed: `make docs` installs it")
    folder = tmp_path_factory.mktemp("site")
    words = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder))
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    assert not [p.stem for p in (ROOT / "docs").glob("*.md") if not (site / f"{p.stem}.html").is_file()]


def test_files_that_pages_link_to_are_in_the_site(site: Path) -> None:
    assert (site / "repository/topologies/two-hosts.yaml.txt").read_bytes() == (
        ROOT / "topologies/two-hosts.yaml"
    ).read_bytes()


def test_a_page_fetches_nothing_from_elsewhere(site: Path) -> None:
    elsewhere = r"=\"?(?:https?:)?//"
    fetched = re.compile(rf"<(?:script|img|iframe|source)[^>]*\ssrc{elsewhere}|<link[^>]*\shref{elsewhere}")
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    assert not [f"{p.name}: {m[0]}" for p in pages for m in fetched.finditer(p.read_text())]
    styles = sorted(site.rglob("*.css"))
    assert styles
    assert not [s.name for s in styles if re.search(r"(?:url\(|@import) *[\"']?(?:https?:)?//", s.read_text())]
