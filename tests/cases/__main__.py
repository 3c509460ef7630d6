"""Run the cases whose names begin so, or all, and print a table: file, machine, expected, observed."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.cases import cases, perform


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


chosen = [c for c in cases() if not sys.argv[1:] or any(c.file.startswith(w) or c.on == w for w in sys.argv[1:])]
wrong = 0
_say("| | file | machine | expected | observed |\n|---|---|---|---|---|")
with TemporaryDirectory(prefix="testbed-cases-") as folder:
    for case in chosen:
        good, seen = perform(case, Path(folder))
        wrong += not good
        cells = ("yes" if good else "NO", case.file, case.on, case.expected, seen)
        _say("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
_say(f"\n{len(chosen) - wrong} of {len(chosen)} cases came out as they must")
sys.exit(bool(wrong))
