"""Results folders that are broken in all ways: a report names what is wrong with each, soon and with little memory.

`python -m tests.fuzz.report 1000 7` tries 1000 folders made of those that are recorded, with the seed 7.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.json import decode, encode

RUNS = Path(__file__).parent.parent / "recorded/runs"
DAMAGED = ("wired", "wireless", "format-1")  # those that have every kind of file and are small
SECONDS, MEGABYTES = 2.0, 300  # of CPU time and of memory: more than this is a fault
_PATIENCE = 60  # seconds: what takes longer hangs
_BATCH = 50  # folders of one process, whose memory is measured
_DERIVED = ("metrics.json", "verdict.json", "junit.xml")
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, -1e308, float("inf"), float("nan"), 10**400, 2**63, 2**64, 1e11, 9.99e14, 86400, 0.5),
    *("", "x", "\x1b[31m", "\0", "\ud800", "../../etc", "9" * 5000, [], {}, [[]], {"a": 1}, [None], [0] * 5000),
)
_BYTES = (b"\0", b"\xff\xfe", b"\n", b'{"a":', b"[" * 20000, b"9" * 5000, b"nan", b"-inf", b"1e999", b"\xed\xa0\x80")
_KINDS = (*("changed",) * 8, "gone", "empty", "folder", "fifo", "link", "loop", "huge", "noise", "long", "bomb")
# What takes most memory for its length, by the end of a file's name: (beginning, what is repeated, end).
_BOMBS: tuple[tuple[str, bytes, bytes, bytes], ...] = (
    (
        "samples.jsonl",
        b'"qdiscs": [',
        b'{"dev":"a","drops":1,"overlimits":1},',
        b'{"dev":"a","drops":1,"overlimits":1}], "x": [',
    ),
    ("air.jsonl", b'"frames": [', b'[1,"a","b",1,1],', b'[1,"a","b",1,1]], "x": ['),
    ("wlan-events.jsonl", b'"links": [', b"1,", b"1,"),
    ("run.json", b'"events": [', b'{"t":0,"step":""},', b""),
    ("manifest.json", b'"overrides": [', b'"",', b'""'),
    ("plan.json", b'"captured":[', b'["a","b"],', b""),
    (".client.json", b'"intervals":\t[', b'{"sum":{"start":0,"end":0,"bytes":0}},', b""),
    (".server.json", b'"intervals":\t[', b'{"sum":{"start":0,"end":0,"bytes":0}},', b""),
)


class Outcome(Struct, frozen=True):
    """What came of one folder: "report", "said" (that it is none), or the place where it went wrong."""

    number: int
    what: str
    seconds: float = 0.0
    why: str = ""


class Batch(Struct, frozen=True):
    """What came of the folders of one process, and the memory that it took."""

    outcomes: tuple[Outcome, ...]
    megabytes: int


def content(run: Path) -> dict[str, bytes]:
    """Return the files of a recorded run."""
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted(run.rglob("*")) if f.is_file()}


def damage(files: dict[str, bytes], folder: Path, chance: random.Random, among: list[str]) -> None:
    """Write a run's files into a folder, one to three of those named broken."""
    count = min(len(among), chance.choice((1, 1, 1, 2, 3)))
    chosen = {f: chance.choice(_KINDS) for f in chance.sample(among, count)}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match chosen.get(name):
            case None:
                path.write_bytes(data)
            case "changed":
                path.write_bytes(changed(name, data, chance))
            case "empty":
                path.touch()
            case "folder":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "link":
                path.symlink_to(chance.choice(("/etc/passwd", "/dev/zero", "/proc/self/mem", "nowhere", ".")))
            case "loop":
                path.symlink_to(path.name)
            case "huge":
                path.write_bytes(data)
                os.truncate(path, 1 << 40)
            case "noise":
                path.write_bytes(chance.randbytes(chance.randrange(200_000)))
            case "bomb":
                path.write_bytes(bomb(name, data))
            case "long":
                path.write_bytes(data + data[-3000:] * (300 if name.endswith(".yaml") else 2000))
    for name in _DERIVED:  # what is written is written over nothing else
        if chance.random() < 0.05:
            (folder / name).symlink_to("/dev/full")


def bomb(name: str, data: bytes) -> bytes:
    """Return a file that is as a run writes it, but as long as a report reads it: with very many small things."""
    for ending, begin, part, end in _BOMBS:
        if name.endswith(ending) and begin in data:
            if not name.endswith(".jsonl"):
                return data.replace(begin, begin + part * ((8 << 20) // len(part)) + end, 1)
            big = begin + part * ((1 << 20) // len(part)) + end
            return b"".join(line.replace(begin, big, 1) for line in data.splitlines(keepends=True))
    return data + b"\n" * (8 << 20)


def changed(name: str, data: bytes, chance: random.Random) -> bytes:
    """Return a file with a few changes: of values where it is JSON, of bytes otherwise."""
    if name.endswith(".json") and chance.random() < 0.7:
        return _json(data, chance)
    if name.endswith(".jsonl") and data and chance.random() < 0.7:
        lines = data.splitlines(keepends=True)
        for _ in range(chance.choice((1, 2, 5))):
            at = chance.randrange(len(lines))
            lines[at] = _json(lines[at], chance) + b"\n"
        if chance.random() < 0.1:
            chance.shuffle(lines)
        return b"".join(lines)
    found = bytearray(data)
    for _ in range(chance.choice((1, 2, 8))):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(6):
            case 0:
                del found[at:]
            case 1:
                found[at : at + 1] = chance.randbytes(1)
            case 2:
                del found[at : at + chance.randrange(1, 50)]
            case 3:
                found[at:at] = found[chance.randrange(len(found) + 1) :][: chance.randrange(1, 100)]
            case 4:
                found[at:at] = chance.choice(_BYTES)
            case 5:
                found[at : at + 8] = chance.choice((b"\xff" * 8, b"\0" * 8, chance.randbytes(8)))
    return bytes(found)


def _json(data: bytes, chance: random.Random) -> bytes:
    try:
        whole = json.loads(data)
    except ValueError:
        return data
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = list(_places(whole))
        if not places or chance.random() < 0.02:
            whole = deepcopy(chance.choice(_VALUES))
            continue
        inside, key = chance.choice(places)
        if chance.random() < 0.25:
            del inside[key]
        elif isinstance(inside, dict) and chance.random() < 0.15:
            inside[chance.choice(("a", "", "eth0", "\x1b", "x" * 300))] = inside.pop(key)
        else:
            inside[key] = deepcopy(chance.choice(_VALUES))
    return json.dumps(whole).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (mapping or list, key or index) of every value in it; of a list the first 50."""
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 50)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


class TooLongError(BaseException):
    """A report took more than it may; no `except` in it holds this up."""


def one(files: dict[str, bytes], number: int, seed: int, work: Path, broken: bool = True) -> Outcome:
    """Damage one folder, unless it is broken as it is, and make its report."""
    from testbed.cli import present
    from testbed.errors import TestbedError
    from testbed.runs.again import again as report

    folder = work / str(number)
    folder.mkdir()
    chance = random.Random(f"{seed}-{number}")
    damage(files, folder, chance, sorted(files) if broken else [])
    began = time.process_time()
    signal.alarm(_PATIENCE)
    try:
        found = report(folder)
        present.report(found, "here")
        what, why = "report", ""
    except TestbedError as e:
        what, why = "said", str(e)[:200]
    except TooLongError:
        what, why = "hang", ""
    except BaseException as e:  # noqa: BLE001 (whatever it is, it is what is looked for)
        places = [f for f in traceback.extract_tb(e.__traceback__) if "/testbed/" in f.filename]
        what, why = f"{type(e).__name__} in {Path(places[-1].filename).name}:{places[-1].lineno}", str(e)[:200]
    finally:
        signal.alarm(0)
    spent = time.process_time() - began
    shutil.rmtree(folder)
    return Outcome(number, what if spent <= SECONDS or what == "hang" else "slow", spent, why)


def _too_long(*_: object) -> None:
    raise TooLongError


def batch(numbers: range, seed: int, runs: list[dict[str, bytes]], broken: bool = True) -> Batch:
    """Try some folders in a process of their own."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            signal.signal(signal.SIGALRM, _too_long)
            with tempfile.TemporaryDirectory() as work:
                done = tuple(one(runs[n % len(runs)], n, seed, Path(work), broken) for n in numbers)
            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            with os.fdopen(write, "wb") as pipe:
                pipe.write(encode(Batch(done, used)))
        except BaseException:  # noqa: BLE001 (a fault of this program itself)
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    return decode(data, type=Batch) if data else Batch((Outcome(numbers[0], "the process died"),), 0)


def campaign(count: int, seed: int) -> Iterator[Batch]:
    """Try that many folders."""
    import testbed.cli.present
    import testbed.runs.older  # noqa: F401 (before the processes are copied)

    runs = [content(RUNS / name) for name in DAMAGED]
    for start in range(0, count, _BATCH):
        yield batch(range(start, min(start + _BATCH, count)), seed, runs)


def full() -> list[str]:
    """Return what is wrong when a file of each kind, one after the other, is as long as it may be."""
    files = content(RUNS / "wireless")
    node = ("samples.jsonl", "wlan-events.jsonl", "call.client.json")
    names = ["air.jsonl", "run.json", *(f"phone/{name}" for name in node)]
    bombs = [{**files, name: bomb(name, files[name])} for name in names]
    current = content(RUNS / "format-1")
    many = {**current, "plan.json": bomb("plan.json", current["plan.json"])}
    some = {**current, "plan.json": _taken(current["plan.json"], 4_900)}
    bombs, names = [*bombs, many], [*names, "plan.json"]
    short = [name for made, name in zip(bombs, names, strict=True) if len(made[name]) <= 1 << 20]
    bombs.append(some)
    return [f"{name} is not long" for name in short] + faults(batch(range(len(bombs)), 0, bombs, broken=False))


def _taken(plan: bytes, count: int) -> bytes:
    """Return plan.json with so many captures: none of their files is there."""
    captured = [["client", f"x{n:014}"] for n in range(count)]
    return json.dumps({**json.loads(plan), "captured": captured}).encode()


def faults(found: Batch) -> list[str]:
    """Return what is wrong in a batch."""
    wrong = [
        f"{o.number}: {o.what}: {o.seconds:.2f} s {o.why}" for o in found.outcomes if o.what not in ("report", "said")
    ]
    first = found.outcomes[0].number
    return wrong + ([f"{first} and next: {found.megabytes} MB"] if found.megabytes > MEGABYTES else [])


def main(count: int, seed: int) -> int:
    """Try that many folders, print what came of them, and return 1 when anything is wrong."""
    began, done, wrong, slowest, most = time.monotonic(), 0, list[str](), 0.0, 0
    kinds: dict[str, int] = {}
    for found in campaign(count, seed):
        done += len(found.outcomes)
        for o in found.outcomes:
            kinds[o.what] = kinds.get(o.what, 0) + 1
        slowest = max(slowest, *(o.seconds for o in found.outcomes))
        most = max(most, found.megabytes)
        wrong += faults(found)
    rate = done / (time.monotonic() - began)
    print(f"report: seed {seed}: {done} folders, {rate:.0f} a second; slowest {slowest:.2f} s, most {most} MB; {kinds}")
    for row in wrong:
        print(row)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
