"""The changes to hostapd: patches that only add lines, and their texts for hostapd's mailing list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testbed.machines.guest import recipe
from tests.conftest import ROOT

PATCHES = sorted(recipe.FOLDER.glob("hostapd-*.patch"))
_HUNK = re.compile(r"@@ -\d+,0 \+\d+(,\d+)? @@")
_FILE = re.compile(r"\+\+\+ b/(.+)")


def halves(patch: Path) -> tuple[str, list[str]]:
    """Return the header of a patch, and the lines of its diff."""
    header, mark, diff = patch.read_text().partition("--- a/")
    return header, (mark + diff).splitlines()


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: str(p.stem))
def test_a_patch_of_hostapd_only_adds_lines_and_has_no_context(patch: Path) -> None:
    _, rows = halves(patch)
    assert rows
    assert not [row for row in rows if not (row.startswith(("+", "--- a/")) or _HUNK.fullmatch(row))]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: str(p.stem))
def test_a_patch_of_hostapd_says_what_it_does_and_names_the_licence(patch: Path) -> None:
    header, _ = halves(patch)
    assert "hostapd 2.11" in header.partition("\n\n")[0]
    for word in ("Jouni Malinen", "and contributors", "SPDX-License-Identifier: BSD-3-Clause"):
        assert word in header


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: str(p.stem))
def test_a_patch_of_hostapd_has_a_commit_message_for_its_mailing_list(patch: Path) -> None:
    message = ROOT / "docs" / "upstream" / f"{patch.stem.removeprefix('hostapd-')}.txt"
    subject, blank, *body = message.read_text().splitlines()
    assert re.fullmatch(r"AP( MLD)?: [A-Z].{10,60}[^.]", subject)
    assert blank == ""
    assert max(map(len, body)) <= 76
    assert {"Seen with", "Tested with"} <= {" ".join(row.split()[:2]) for row in body}
    assert body[-1] == "Signed-off-by: Your Name <your@email.example.org>"


def test_the_sums_are_of_exactly_the_files_that_the_patches_change() -> None:
    changed = {m[1] for patch in PATCHES for row in halves(patch)[1] if (m := _FILE.fullmatch(row))}
    summed = [row.split() for row in (recipe.FOLDER / "hostapd.sha256").read_text().splitlines()]
    assert {name for _, name in summed} == changed
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value, _ in summed)
