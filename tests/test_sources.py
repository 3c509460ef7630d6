"""Versions are compared by their sources, for every commit has the same number."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from testbed import __version__
from testbed.lab import sources


def test_the_same_sources_are_the_same_version_wherever_they_are(tmp_path: Path) -> None:
    copy = shutil.copytree(sources.PACKAGE, tmp_path / "testbed", ignore=shutil.ignore_patterns("__pycache__"))
    assert sources.digest(copy) == sources.digest()
    (copy / "units.py").write_text("# edited\n")
    assert sources.digest(copy) != sources.digest()
    (copy / "units.py").unlink()
    assert sources.digest(copy) != sources.digest()


def test_a_number_is_compared_with_ours_and_a_digest_with_that_of_our_sources() -> None:
    assert sources.version().startswith(f"{__version__}+")
    assert sources.same(sources.version())
    assert sources.same(__version__)
    assert not sources.same(f"{__version__}+00000000")
    assert not sources.same("9.9.9")


def test_a_process_whose_sources_were_edited_after_its_start_says_so() -> None:
    assert sources.started(time.time() + 1) == sources.version()
    assert "have changed" in sources.started(0.0)
