"""A run's folder, cut down to what its report reads, as a recorded run that tests keep.

`python -m tests.trimmed results/NAME/latest tests/recorded/runs/NAME 4` keeps every fourth sample of each node.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

_READ = (
    *("manifest.json", "effective.yaml", "plan.json", "run.json", "dmesg.log", "experiment.yaml", "topology.yaml"),
    *(
        "machine.jsonl",
        "air.jsonl",
        "samples.jsonl",
        "flows.jsonl",
        "wlan-events.jsonl",
        ".dumpcap.log",
        ".ping.txt",
        ".ping.log",
    ),
    *(".client.json", ".server.json", ".sender.json", ".receiver.json", ".packets", ".sent"),
)
_LONG = 10_000  # bytes of an iperf3 report whose white space is left out


def trim(source: Path, target: Path, keep: int) -> None:
    """Copy what a report reads; of samples every so many, and no MPTCP counter that stayed 0 and is in no check."""
    names = "".join(f.read_text() for f in source.glob("*.yaml"))
    for file in sorted(f for f in source.rglob("*") if f.is_file() and f.name.endswith(_READ)):
        out = target / file.relative_to(source)
        out.parent.mkdir(parents=True, exist_ok=True)
        match file.name:
            case "samples.jsonl":
                rows = [json.loads(row) for row in file.read_text().splitlines()]
                some = [row for n, row in enumerate(rows) if n % keep == 0 or n == len(rows) - 1]
                out.write_text("".join(f"{json.dumps(row)}\n" for row in _counted(some, names)))
            case "manifest.json":
                found = json.loads(file.read_text())
                if found.get("image"):
                    del found["image"]["packages"]
                out.write_text(f"{json.dumps(found, indent=1)}\n")
            case name if name.endswith((".client.json", ".server.json")) and file.stat().st_size > _LONG:
                out.write_text(f"{json.dumps(json.loads(file.read_text()), separators=(',', ':'))}\n")
            case _:
                shutil.copyfile(file, out)


def _counted(rows: list[dict[str, Any]], names: str) -> list[dict[str, Any]]:
    counters = {key for row in rows for key, value in (row.get("mib") or {}).items() if value or key in names}
    return [
        {**row, "mib": {k: row["mib"][k] for k in row["mib"] if k in counters}} if row.get("mib") else row
        for row in rows
    ]


if __name__ == "__main__":
    trim(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
