"""Time from a command to its first answer out of a guest, side by side in one run: booted, restored, virtme-ng.

    python benchmarks/machine_start.py [--image FOLDER] [--repeats 5] [--vng PATH] [--methods ...]

Methods, in rounds of one of each in random order, each a process of its own, all without KVM, with two processors and
2 GiB:

    cold        a guest of testbed is booted and runs `true`
    restored    one is restored from a saved boot and runs `true`
    command     the same, and runs `testbed check topologies/two-hosts.yaml`
    virtme-ng   `vng --exec` (PyPI virtme-ng): the same kernel, and the same root unpacked into a folder

The time ends when the answer is read, not when the guest has gone. A factor is the median of those of the rounds, for
processors that are shared are not as fast in every minute. Exit status 1: a goal fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
METHODS = ("cold", "restored", "command", "virtme-ng")
ANSWER = "answered"
GUEST = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from testbed.machines.guest import command, microvm
from testbed.machines.guest.qemu import Share, Size
folder, digest, how, code = sys.argv[1:]
guest = microvm.start(SimpleNamespace(folder=Path(folder), digest=digest), Size(2, 2048), f"bench-{os.getpid()}",
                      {"code": Share(Path(code), "/testbed")}, restore=how != "cold", accel="tcg")
words = ("testbed", "check", "/testbed/topologies/two-hosts.yaml") if how == "command" else ("true",)
with open(os.devnull, "r+") as null:
    status = command.call(guest, words, streams=(null.fileno(),) * 3)
assert status == 0, status
print("answered", {k: round(v, 2) for k, v in guest.phases.items()}, flush=True)
microvm.stop(guest)
"""


def main() -> int:
    """Measure, print, judge."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--image", type=Path)
    words.add_argument("--repeats", type=int, default=5)
    words.add_argument("--vng", default=shutil.which("vng"))
    words.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = words.parse_args()
    folder, digest = image(options.image)
    methods = [m for m in options.methods if m != "virtme-ng" or options.vng]
    if len(methods) < len(options.methods):
        print("virtme-ng is not measured: no vng (pip install virtme-ng)")
    seconds: dict[str, list[float]] = {m: [] for m in methods}
    with tempfile.TemporaryDirectory(prefix="machine-start-") as name:
        root = Path(name) / "root"
        if "virtme-ng" in methods:
            unpack = ("unsquashfs", "-q", "-n", "-d", str(root), str(folder / "root.squashfs"))
            subprocess.run(unpack, check=True, stdout=subprocess.DEVNULL)
            release = next((root / "usr/lib/modules").iterdir())
            shutil.copy(folder / "vmlinuz", release / "vmlinuz")
        for how in set(methods) & {"restored", "command"}:
            answered(guest(folder, digest, how))  # saves a guest if there is none
        for method in [m for _ in range(options.repeats) for m in random.sample(methods, len(methods))]:
            argv = vng(options.vng, release) if method == "virtme-ng" else guest(folder, digest, method)
            took, said = answered(argv)
            seconds[method].append(took)
            print(f"{method:10} {took:6.2f} s  {said}", flush=True)
    return judge(seconds)


def image(folder: Path | None) -> tuple[Path, str]:
    """Return the folder and the name of the image."""
    if folder is not None:
        return folder, json.loads((folder / "manifest.json").read_text())["digest"]
    found = importlib.import_module("testbed.machines.guest.image").find()
    if found is None:
        raise SystemExit("there is no image: `testbed image build` makes one")
    return found.folder, found.digest


def guest(folder: Path, digest: str, how: str) -> tuple[str, ...]:
    """Return the command that starts a guest of ours."""
    return (sys.executable, "-c", GUEST, str(folder), digest, how, str(HERE))


def vng(program: str, release: Path) -> tuple[str, ...]:
    """Return virtme-ng's command for the same kernel and root."""
    root = release.parents[3]
    size = ("--disable-kvm", "--cpus", "2", "--memory", "2G")
    # Without udev in the root it answers on the console, which only `--verbose` shows; the kernel is kept silent there.
    shown = ("--verbose", "--append", "loglevel=1", "--exec", f'echo {ANSWER[:4]}""{ANSWER[4:]}')
    return (program, "--root", str(root), "--run", str(release / "vmlinuz"), *size, *shown)


def answered(argv: tuple[str, ...], tries: int = 3) -> tuple[float, str]:
    """Return after how many seconds a command has answered, and its line; then end it.

    A kernel that panics, which an emulated one does now and then as it patches its code, is started again, and the time
    with it.
    """
    path = os.pathsep.join((str(Path(argv[0]).parent), os.environ["PATH"]))
    began = time.monotonic()
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(HERE)},
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if ANSWER in line:
                took = time.monotonic() - began
                if argv[0] != sys.executable:
                    os.killpg(process.pid, signal.SIGTERM)
                return took, line.strip().removeprefix(ANSWER)
    if tries > 1 and any("Kernel panic" in line for line in lines):
        print(f"{Path(argv[0]).name}: the kernel panicked; once more", flush=True)
        return answered(argv, tries - 1)
    raise SystemExit(f"{argv[0]} gave no answer:\n{''.join(lines[-30:])}")


def judge(seconds: dict[str, list[float]]) -> int:
    """Print medians and goals; return the exit status."""
    middle = {m: statistics.median(s) for m, s in seconds.items() if s}
    for method, median in middle.items():
        print(f"{method:10} median {median:6.2f} s  [{min(seconds[method]):.2f}, {max(seconds[method]):.2f}]")
    goals = {f"{m} below {s} s": middle[m] < s for m, s in (("cold", 8), ("restored", 3)) if m in middle}
    if "virtme-ng" in middle:
        for method, wanted in (("cold", 3), ("restored", 8)):
            if method in middle:
                pairs = zip(seconds["virtme-ng"], seconds[method], strict=True)
                ratio = statistics.median(theirs / ours for theirs, ours in pairs)
                goals[f"{method} at least {wanted} x as fast as virtme-ng ({ratio:.1f} x)"] = ratio >= wanted
    for goal, holds in goals.items():
        print(f"{'yes' if holds else 'NO ':3} {goal}")
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
