"""Docstrings, comments and messages in the code keep to plain English: these phrases do not come back."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

GONE = (
    "why: str # that one",
    "for which results wait for one whose connection broke",
    "after which nobody will come for them",
    "faulty parts too",
    "whose faults could make others seem to be there",
    "wants to hear of that",
    "the interface that is missing therefore",
    "one that dies is told at once",
    "for emulated processors that share",
    "While others came, what held may have ended",
    "unless it has met `code` before",
    "by it mmdebstrap knows whose suite is whose",
)
FILES = [f for f in (ROOT / "testbed").rglob("*") if f.is_file() and f.suffix in (".py", ".sh", ".c", ".txt", "")]


def plain(text: str) -> str:
    """Return a text in one line, without the marks of comments and quotes at the ends of its lines."""
    return re.sub(r'["\']?\s*\n\s*(?:#|\*|["\'])?\s*', " ", re.sub(r"[ \t]+", " ", text))


TEXTS = {str(f.relative_to(ROOT)): plain(f.read_text(errors="replace")) for f in FILES}


@pytest.mark.parametrize("phrase", GONE)
def test_a_phrase_that_readers_stumbled_over_is_gone(phrase: str) -> None:
    assert not [name for name, text in TEXTS.items() if phrase in text]


def test_a_phrase_is_found_across_lines_and_in_comments() -> None:
    assert plain("# one that dies is told\n    # at once,  so") == "# one that dies is told at once, so"
    assert len(TEXTS) > 100
