"""Files and options that are broken in all ways: each is a lab, or an error of its author, soon.

`python -m tests.fuzz.yaml 1000 7` tries 1000 with the seed 7: read, planned, what a run of it does, all of it as text.
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
from collections.abc import Iterator
from pathlib import Path
from traceback import extract_tb
from typing import Any

import yaml
from msgspec import Struct

from testbed.errors import InputError, TestbedError
from testbed.language.schema import schema
from testbed.loading import read
from testbed.plan import run as schedule
from testbed.plan.lab import plan

ROOT = Path(__file__).parents[2]
FOUND = Path(__file__).parent / "found/yaml"  # inputs that went wrong once: tests/test_fuzz_yaml.py tries each again
SECONDS, PATIENCE = 2.0, 20  # of CPU time for one input; s after which it hangs
_TEXT = 1 << 18  # characters that an error may have
_SEEDS = ("topologies/*.yaml", "experiments/*.yaml", "docs/examples/*.yaml", "tests/errors/*.yaml")
_SPECIAL: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**18, 1e308, -0.0, 1e-320),
    *(float("inf"), float("nan"), "", " ", "\0", "a\0b", "\x1b[31m", "\u202e", "\u0130", "\U0001f600", "ß" * 40),
    *(
        "A" * 5000,
        "A" * 70000,
        "a." * 9000,
        "..",
        "../../etc",
        "/",
        "-",
        "--",
        "-w",
        "*",
        "?",
        "[",
        "[a-",
        "**",
        "*a" * 90,
    ),
    *("a:b", ":", "a:", ":eth0", "0x10", "010", "1_000", "1:30", "yes", "no", "2001-01-01", ".inf", ".nan", "<<", "&a"),
    *("10mbit", "-5mbit", "0bit", "1e3mbit", "5ms", "86400s", "0%", "100%", "64kb", "4gb", "0b", "9" * 400),
    *("10.0.0.1/8", "10.0.0.1/33", "::/0", "fe80::1/64", "::ffff:1.2.3.4/120", "fe80::1%eth0/64", "224.0.0.1/4"),
    *("0.0.0.0/0", "255.255.255.255/32", "default", "net.ipv4.ip_forward", "net..x", "net.ipv4./.."),
    *("net.ipv4.conf.eth0/5.rp_filter", "machine", "air", "localhost", "run.json", "lo", "all", "any", "wlan0", "br0"),
    *("eth0", "client", "server", "client:eth0", [], {}, [[]], [{}], {"": {}}, {"a": None}, ["a", "a"], [None], [""]),
    *({"node": "client"}, 65536, 2**32, 5180, 5300, 2412, 5975, 7115, 232, "232.1.1.1", "ff3e::8000:1", "ff02::1"),
    *("239.1.1.1", "224.0.0.5", "mptcp", "udp", "signal", "backup", "fullmesh", "kernel", "userspace", "remove", "add"),
    *("set", "sae", "open", "owe", "gcmp-256", [0] * 3000, {str(n): {} for n in range(300)}),
)
_CHARACTERS = ("\0", "%", "\u2028", "9", "-", ".", "/", '"', "\n", "\t", "\U0001f4a9", "{", "[", "#", ":")
_BYTES = (
    *(b"&a ", b"*a", b"<<: ", b"!!int ", b"!!python/object:os.system ", b"? ", b": ", b"- ", b"{", b"}", b"[", b"]"),
    *(
        b'"',
        b"'",
        b"|",
        b">",
        b"%",
        b"@",
        b"`",
        b"\t",
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
        b"---\n",
        b"...\n",
    ),
    *(b"#", b"\r", b"\xc2\x85", b"\xef\xbb\xbf"),
)
_PARTS = (
    *(
        "links",
        "cable",
        "0",
        "1",
        "99",
        "-1",
        "rate",
        "loss",
        "delay",
        "nodes",
        "client",
        "server",
        "a",
        "phone",
        "sysctl",
    ),
    *(
        "net",
        "ipv4",
        "tcp_sack",
        "checks",
        "metric",
        "min",
        "workloads",
        "bulk",
        "iperf3",
        "to",
        "from",
        "events",
        "at",
    ),
    *("matrix", "repeat", "seed", "topology", "families", "", "..", "mptcp", "endpoints", "flags", "queue"),
    *("limit", "name", "ends", "capture", "filter", "<<", "*", "samples", "every", "duration", "forward"),
    "client:eth0",
)
_VALUES = (
    *("5mbit", "0", "-1", "", "~", "true", "{}", "[]", "[1,2]", "{a: b}", "*x", "&x 1", '"', "'", "{", "[", "1e999"),
    *(
        "!!python/object:os.system x",
        "99999999999999999999",
        "a: b: c",
        "- a",
        "\t",
        "\0",
        "\u2028",
        "\ud800",
        "x" * 10000,
    ),
    *(
        "[" * 37 + "1" + "]" * 37,
        "../../../etc/passwd",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        ".",
        "1000",
        "1001",
    ),
    "topologies/two-hosts.yaml",
)


class Outcome(Struct, frozen=True):
    """What came of an input: "lab", "refused", "unsupported", or the place where it went wrong."""

    what: str
    seconds: float


def judged(file: Path, sets: tuple[str, ...] = ()) -> str:
    """Read a file, plan what it states and print that; return what it is."""
    try:
        for case in read(file, sets).cases[:2]:
            made = plan(case.topology)
            steps = schedule.run_steps(made)
            str(made)
            [str(step) for step in steps]
            made.requires()
            schedule.requires(made)
    except InputError as e:
        return "refused" if e.problems and len(str(e)) < _TEXT else f"refused in {len(str(e))} characters"
    except TestbedError:
        return "unsupported"
    return "lab"


def outcome(file: Path, sets: tuple[str, ...] = ()) -> Outcome:
    """Return what a file, with options, is; and if that goes wrong, where."""
    began = time.process_time()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        what = judged(file, sets)
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt):
            raise
        places = [f for f in extract_tb(e.__traceback__) if f"{os.sep}testbed{os.sep}" in f.filename]
        last = places[-1] if places else extract_tb(e.__traceback__)[-1]
        what = f"{type(e).__name__}: {str(e)[:80]!r} at {Path(last.filename).name}:{last.lineno}"
    finally:
        signal.alarm(0)
    seconds = time.process_time() - began
    return Outcome(f"slow: {seconds:.1f} s" if seconds > SECONDS and what in _GOOD else what, seconds)


_GOOD = ("lab", "refused", "unsupported")


def _too_long(*_: object) -> None:
    raise TimeoutError("it hangs")


class Mutator:
    """Makes inputs: of files that are right or nearly so, with one to five things of them changed."""

    def __init__(self, chance: random.Random) -> None:
        """Read the files of the repository."""
        self.chance = chance
        self.texts = [f.read_bytes() for pattern in _SEEDS for f in sorted(ROOT.glob(pattern))]
        self.texts = [text for text in self.texts if 3 < len(text) < 6000]
        self.trees = list(filter(None, map(_tree, self.texts)))
        right = [f.read_bytes() for pattern in _SEEDS[:3] for f in sorted(ROOT.glob(pattern))]
        self.right = [tree for tree in map(_tree, right) if tree and "topology" not in tree]
        self.values = [value for tree in self.trees for _, value in _walk(tree)]
        self.under = dict[str, list[Any]]()  # what is written under a key anywhere
        for pair in (pair for value in self.values if isinstance(value, dict) for pair in value.items()):
            self.under.setdefault(pair[0], []).append(pair[1])
        self.keys = sorted({*_keys(schema()), *(k for v in self.values if isinstance(v, dict) for k in v)})

    def tree(self) -> bytes:
        """Return a file whose values or keys are not what they were."""
        chance, tree = self.chance, _copy(self.chance.choice(self.right if self.chance.random() < 0.85 else self.trees))
        for _ in range(chance.choice((1, 1, 1, 1, 2, 2, 3, 5))):
            path, value = chance.choice(list(_walk(tree)))
            if not path:
                tree[chance.choice(self.keys)] = _copy(chance.choice(_SPECIAL))
                continue
            holder: Any = tree
            for part in path[:-1]:
                holder = holder[part]
            self.change(holder, path[-1], value)
        style = chance.choice((None, False, True))
        text: str = yaml.dump(
            tree,
            Dumper=yaml.CSafeDumper,
            sort_keys=False,
            allow_unicode=chance.random() < 0.5,
            default_flow_style=style,
        )
        return text.encode("utf-8", "surrogatepass")

    def change(self, holder: Any, key: Any, value: Any) -> None:
        """Change one value of a mapping or a list."""
        chance = self.chance
        near = self.under.get(key, []) if isinstance(key, str) and chance.random() < 0.5 else []
        other = _copy(chance.choice(near or (_SPECIAL if chance.random() < 0.6 else self.values)))
        match chance.randrange(7 if not near else 12):
            case 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                holder[chance.choice(self.keys)] = other
            case 4 if isinstance(holder, dict):
                word = chance.choice(
                    [w for w in _SPECIAL if isinstance(w, str)] if chance.random() < 0.5 else self.keys
                )
                holder[word] = holder.pop(key)
            case 5 if isinstance(holder, list):
                holder.insert(chance.randrange(len(holder) + 1), other if chance.random() < 0.5 else _copy(value))
            case 6 if isinstance(value, str) and value:
                at = chance.randrange(len(value))
                holder[key] = value[:at] + chance.choice(_CHARACTERS) + value[at + chance.randrange(2) :]
            case _:
                holder[key] = other

    def bytes(self) -> bytes:
        """Return a file whose bytes are not what they were."""
        chance, data = self.chance, bytearray(self.chance.choice(self.texts))
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            if not data:
                break
            at = chance.randrange(len(data))
            match chance.randrange(6):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randrange(1, 20)]
                case 2:
                    text = chance.choice(self.texts)
                    begin = chance.randrange(len(text))
                    data[at:at] = text[begin : begin + chance.randrange(1, 60)]
                case 3:
                    data[at:at] = chance.choice(_BYTES)
                case 4:
                    there = chance.randrange(len(data))
                    data[at : at + 8], data[there : there + 8] = data[there : there + 8], data[at : at + 8]
                case _:
                    data[at:at] = data[at : at + chance.randrange(1, 200)]
        return bytes(data)

    def options(self) -> tuple[str, ...]:
        """Return options of the command line, `--set` PATH=VALUE each."""
        chance = self.chance
        return tuple(
            ".".join(chance.choice(_PARTS) for _ in range(chance.choice((1, 2, 2, 3, 3, 4, 5))))
            + chance.choice(("=", "=", "=", "=", "", "=="))
            + chance.choice(_VALUES)
            for _ in range(chance.choice((1, 1, 2, 3)))
        )


def _tree(text: bytes) -> Any:
    try:
        found = yaml.load(text, Loader=yaml.CSafeLoader)
        return _copy(found) if isinstance(found, dict) and len(str(found)) < 20000 else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _walk(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _walk(inner, (*path, key))


def _keys(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        yield from part.get("properties", ())
        for inner in part.values():
            yield from _keys(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _keys(inner)


def inputs(count: int, seed: int) -> Iterator[tuple[bytes, tuple[str, ...]]]:
    """Yield that many files with options."""
    chance = random.Random(seed)
    mutator = Mutator(chance)
    for _ in range(count):
        match chance.random():
            case share if share < 0.6:
                yield mutator.tree(), ()
            case share if share < 0.85:
                yield mutator.bytes(), ()
            case _:
                yield chance.choice(mutator.texts), mutator.options()


def main(count: int, seed: int) -> int:
    """Try that many inputs, keep those that go wrong, print what came of them; return 1 when anything is wrong."""
    began, kinds, slowest = time.monotonic(), dict[str, int](), 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as work:
        # What experiments build on is where it was.
        for part in ("topologies", "experiments"):
            shutil.copytree(ROOT / part, Path(work, part))
        file = Path(work, "experiments/fuzz.yaml")
        for data, sets in inputs(count, seed):
            file.write_bytes(data)
            found = outcome(file, sets)
            slowest = max(slowest, found.seconds)
            kinds[found.what] = kinds.get(found.what, 0) + 1
            if found.what not in _GOOD and kinds[found.what] == 1:
                keep(data, sets)
    rate = count / (time.monotonic() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    known = {kind: kinds.get(kind, 0) for kind in _GOOD}
    print(f"yaml: seed {seed}: {count} files, {rate:.0f} a second; slowest {slowest:.2f} s, {grown} MB more; {known}")
    wrong = {kind: n for kind, n in kinds.items() if kind not in _GOOD}
    for kind, n in wrong.items():
        print(f"{n} times {kind}")
    return int(bool(wrong))


def keep(data: bytes, sets: tuple[str, ...]) -> None:
    """Keep an input, options as comments at its end, as tests/errors has them at the beginning."""
    FOUND.mkdir(parents=True, exist_ok=True)
    number = len(list(FOUND.iterdir()))
    options = "".join(f"\n# --set {json.dumps(option)}" for option in sets)
    (FOUND / f"{number:03}.yaml").write_bytes(data + options.encode())


def kept(file: Path) -> Outcome:
    """Return what a kept input is by now."""
    sets = [
        row.removeprefix("# --set ") for row in file.read_text(errors="replace").splitlines() if row[:8] == "# --set "
    ]
    return outcome(file, tuple(json.loads(row) for row in sets if row.startswith('"')))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
