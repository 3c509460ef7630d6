"""What a machine lacks is a sentence with exit status 3, and nothing is left: disks, descriptors, namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, testbed

pytestmark = pytest.mark.kernel

SMALL = """
name: small
nodes: {a: {}, b: {}}
links: [{ends: [a:eth0, b:eth0]}]
workloads: {rtt: {ping: {from: a, to: b, seconds: 1}}}
checks: [{metric: rtt.loss_pct, equals: 0}]
"""


def inside(script: str, *words: str, spaces: str = "-m") -> subprocess.CompletedProcess[str]:
    """Run a line of shell, in which the command line is "$@", in namespaces of its own."""
    argv = ("unshare", *spaces.split(), "bash", "-c", script, "bash", sys.executable, "-m", "testbed", *words)
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, ...]:
    """The words of a short run, with results in tmp_path/r."""
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "r").mkdir()
    return ("run", str(tmp_path / "small.yaml"), "--machine", "here", "--results", str(tmp_path / "r"))


@pytest.mark.skipif(os.geteuid() != 0, reason="root mounts")
def test_results_that_can_not_be_written_are_said_and_leave_no_folder_that_is_none(
    small: tuple[str, ...], tmp_path: Path, name: str
) -> None:
    place = tmp_path / "r"
    for kind, said in (
        ("size=4k", "No space left on device"),
        ("size=16k", "No space left on device"),
        ("size=40k", "No space left on device"),
        ("nr_inodes=4", "No space left on device"),
        ("ro", "Read-only file system"),
    ):
        kept = f'find {place} -mindepth 2 -maxdepth 2 -type d ! -exec test -e {{}}/manifest.json ";" -print'
        script = f'mount -t tmpfs -o {kind} tmpfs {place}; "$@" >&2; status=$?; {kept}; exit $status'
        done = inside(script, *small, "--name", name)
        assert (done.returncode, done.stdout) == (3, ""), (kind, done.stderr)
        assert said in done.stderr.splitlines()[-1], (kind, done.stderr)
        assert "can't be written: " in done.stderr.splitlines()[-1]
        assert name not in testbed("status").stdout
    place.rmdir()
    place.write_text("a file")
    done = testbed(*small, "--name", name)
    assert (done.returncode, "can't be written: " in done.stderr) == (3, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="root mounts")
def test_a_run_is_whole_where_its_output_and_the_kernel_log_are_not(
    small: tuple[str, ...], tmp_path: Path, name: str
) -> None:
    done = inside('mount --bind /dev/zero /dev/kmsg; "$@" > /dev/full', *small, "--name", name)
    assert done.returncode == 3
    assert done.stderr.endswith("testbed: standard output can't be written: No space left on device\n")
    folder = tmp_path / "r/small/latest"
    assert json.loads((folder / "verdict.json").read_text())["verdict"] == "passed"
    assert "is not as the kernel writes it" in (folder / "dmesg.log").read_text()
    script = f'mount --bind {tmp_path} {tmp_path}; mount -o remount,ro,bind {tmp_path}; "$@"'
    done = inside(script, "report", str(folder))
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.endswith("Read-only file system\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("limit", ["-n 5", "-n 8", "-n 10", "-n 14", "-n 24", "-v 120000", "-f 1"])
def test_a_lab_comes_up_within_the_limits_of_the_shell_or_says_what_it_lacks(
    limit: str, name: str, tmp_path: Path
) -> None:
    nodes = ", ".join(f"n{n}: {{}}" for n in range(12))
    (tmp_path / "t.yaml").write_text(f"name: many\nnodes: {{{nodes}}}\n")
    words = ("up", str(tmp_path / "t.yaml"), "--name", name, "--machine", "here")
    done = inside(f'ulimit {limit}; "$@"', *words, spaces="-m")
    up = name in testbed("status").stdout
    assert (done.returncode, up) in ((0, True), (3, False)), (done.returncode, done.stderr)
    assert (done.stderr == "") == up
    assert "Traceback" not in done.stderr
    assert up or "-n" not in limit or "ulimit" in done.stderr
    if up:
        assert testbed("down", name).returncode == 0


@pytest.mark.parametrize("kind", ["net", "mnt", "pid", "uts"])
def test_as_many_namespaces_as_the_kernel_allows_is_said(kind: str, name: str) -> None:
    script = f'echo 1 > /proc/sys/user/max_{kind}_namespaces || exit 9; "$@"'
    words = ("up", str(ROOT / "topologies/two-hosts.yaml"), "--name", name, "--machine", "here")
    done = inside(script, *words, spaces="--user --map-root-user --mount --net --pid --fork --mount-proc")
    if done.returncode == 9:
        pytest.skip(f"this machine does not let a user namespace set its limits: {done.stderr}")
    assert done.returncode in ((3, 4) if kind in ("net", "mnt") else (0, 3, 4)), done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "namespaces" in done.stderr or "No space left on device" in done.stderr
