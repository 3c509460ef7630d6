"""Run the families of experiments/mptcp/conformance.yaml and print a table, or KTAP with --ktap."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from testbed.language.parsing import parse

FILE = Path(__file__).parents[2] / "experiments/mptcp/conformance.yaml"
_PATIENCE = 300  # s for a case
# What must be 0 in each case that does not say otherwise.
_NONE = (
    "MPCapableFallbackACK",
    "MPCapableFallbackSYNACK",
    "MPCapableDataFallback",
    "DataCsumErr",
    "MPJoinAckHMacFailure",
)
Case = Mapping[str, Any]


class Found(Struct, frozen=True):
    """What came of a case: passed, failed or skipped, and why; `folder` has what was recorded."""

    outcome: str
    why: str = ""
    folder: str = ""


def families() -> dict[str, list[Case]]:
    """Return the cases of each family."""
    found: dict[str, list[Case]] = parse(FILE.read_text(), FILE.name).data
    return found


def expected(case: Case) -> dict[str, int]:
    """Return what the hosts must count, by HOST.COUNTER."""
    wanted: dict[str, int] = {f"{host}.{name}": 0 for host in ("client", "server") for name in _NONE}
    if (joins := case.get("joins")) is not None:
        wanted |= {"client.MPJoinSynTx": joins, "client.MPJoinSynAckRx": joins}
        wanted |= {"server.MPJoinSynRx": joins, "server.MPJoinAckRx": joins, "server.MPJoinRejected": 0}
        ports = any("port" in e.split() for e in case.get("server", ()))
        wanted |= {} if not ports else {"server.MPJoinPortSynRx": joins}
    if (announced := case.get("announced")) is not None:
        wanted |= {"server.EchoAdd": announced}
    wanted |= case.get("counters", {})
    return wanted


def topology(case: Case) -> dict[str, Any]:
    """Return a case as a file of testbed."""
    checks = [{"metric": f"{h}.mptcp.{c}", "equals": n} for h, _, c, n in _split(expected(case))]
    if (announced := case.get("announced")) is not None:
        checks.append({"metric": "client.mptcp.AddAddr", "min": announced})  # it may come again
    links = [{"name": f"l{n}", "ends": [f"server:eth{n}", f"client:eth{n}"]} for n in range(1, 5)]
    flow = {"from": "client", "to": "server", "to_interface": "eth1", "protocol": "mptcp", "seconds": 1.5}
    flow |= {"rate": "2mbit", "family": case.get("family", "ipv4")}
    return {
        "name": "conformance",
        "nodes": {host: {"mptcp": _role(case, host)} for host in ("server", "client")},
        "links": links,
        "workloads": {"bulk": {"transfer": flow}},
        "events": case.get("events", []),
        "checks": checks,
    }


def _split(wanted: Mapping[str, int]) -> Iterator[tuple[str, str, str, int]]:
    yield from ((*name.partition("."), count) for name, count in wanted.items())


def _role(case: Case, host: str) -> dict[str, Any]:
    subflows, accepted = case.get(f"{host}_limits") or case["limits"]
    endpoints = [_endpoint(text) for text in case.get(host, ())]
    limits = {"subflows": subflows, "add_addr_accepted": accepted}
    return {"limits": limits, "endpoints": endpoints, **case.get(f"{host}_keys", {})}


def _endpoint(text: str) -> dict[str, Any]:
    address, *words = text.split()
    made: dict[str, Any] = {"address": address, "flags": []}
    while words:
        word = words.pop(0)
        if word in ("id", "port"):
            made[word] = int(words.pop(0))
        elif word == "nodev":
            made["dev"] = False
        else:
            made["flags"].append(word)
    return made


def run(case: Case, folder: Path, label: str) -> Found:
    """Run a case; what a kernel lacks is a reason to skip it."""
    file = folder / f"{label}.json"
    file.write_text(json.dumps(topology(case)))
    words = (sys.executable, "-m", "testbed", "run", str(file), "--name", f"conformance-{label}"[:40], "--results")
    results = folder / label
    done = subprocess.run((*words, str(results)), capture_output=True, text=True, check=False, timeout=_PATIENCE)
    if done.returncode == 0:
        return Found("passed")
    if done.returncode == 4:
        return Found("skipped", done.stderr.strip().splitlines()[-1])
    kept = str(next(results.glob("conformance/latest"), results))
    if done.returncode != 1:
        return Found("failed", (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1], kept)
    bad = [" ".join(row.split()) for row in done.stdout.splitlines() if "FAIL" in row or "unsupported" in row]
    unknown = [row for row in bad if "unsupported" in row]
    if unknown and len(unknown) == len(bad):
        return Found("skipped", "; ".join(unknown))
    return Found("failed", "; ".join(bad), kept)


def main() -> int:
    """Run all cases, or those of the families that are named."""
    parser = argparse.ArgumentParser(prog="make conformance", description=__doc__)
    parser.add_argument("families", nargs="*", help="which families; all if left out")
    parser.add_argument("--ktap", action="store_true", help="print KTAP (Documentation/dev-tools/ktap.rst)")
    asked = parser.parse_args()
    every = families()
    if unknown := [name for name in asked.families if name not in every]:
        parser.error(f"there is no family {unknown[0]!r}: there are {', '.join(every)}")
    chosen = {name: cases for name, cases in every.items() if not asked.families or name in asked.families}
    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    found: dict[str, list[tuple[Case, Found]]] = {}
    number = 0
    if asked.ktap:
        print("KTAP version 1", f"1..{sum(map(len, chosen.values()))}", sep="\n", flush=True)
    for name, cases in chosen.items():
        for n, case in enumerate(cases):
            came = run(case, folder, f"{name.replace('_', '-')}-{n + 1}")
            found.setdefault(name, []).append((case, came))
            number += 1
            if asked.ktap:
                verdict = "not ok" if came.outcome == "failed" else "ok"
                skip = f" # SKIP {came.why}" if came.outcome == "skipped" else ""
                print(f"{verdict} {number} {name}: {case['name']}{skip}", flush=True)
    if not asked.ktap:
        _table(found)
    for name, rows in found.items():
        for case, came in rows:
            if came.outcome == "failed":
                print(f"{'# ' * asked.ktap}{name}: {case['name']}: {came.why} ({came.folder})")
    return int(any(came.outcome == "failed" for rows in found.values() for _, came in rows))


def _table(found: Mapping[str, list[tuple[Case, Found]]]) -> None:
    print(f"{'family':16}{'cases':>6}{'passed':>8}{'skipped':>9}")
    for name, rows in found.items():
        outcomes = [came.outcome for _, came in rows]
        why = dict.fromkeys(came.why for _, came in rows if came.outcome == "skipped")
        counts = f"{len(rows):6}{outcomes.count('passed'):8}{outcomes.count('skipped'):9}"
        print(f"{name:16}{counts}  {'; '.join(why)}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
