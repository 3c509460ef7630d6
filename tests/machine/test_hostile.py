"""A guest that is hostile: root in it tries to reach its host, which keeps the raw files of the run and no more."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

import pytest

from testbed.lab import reach
from testbed.machines.guest import staging
from tests.conftest import ROOT, testbed

pytestmark = [pytest.mark.machine, pytest.mark.xdist_group("lab")]

PATIENCE = 300
# In the guest, as root. D is where the run's own raw files are.
EVIL = r"""
exec 2>&1; set -x
D=/results/0; N=$D/a
mount -o remount,rw /testbed; touch /testbed/evil /testbed/testbed/evil
mkdir -p /m1 /m2
mount -t 9p -o trans=virtio,version=9p2000.L code /m1; touch /m1/evil /m1/testbed/cli.py
mount -t 9p -o trans=virtio,version=9p2000.L results /m2; mkdir /m2/../../evil /m2/../other
for name in metrics.json verdict.json junit.xml manifest.json effective.yaml plan.json report.html; do
    echo '{"verdict": "passed", "machine": "here"}' >$D/$name
done
echo 'name: evil' >$D/topology.yaml
ln -s VICTIM/secret $D/.metrics.json
ln -s VICTIM/secret $D/console.log
ln -s VICTIM $N/folder
ln -s VICTIM/secret $N/link
mknod $N/disk b 254 0; chmod 666 $N/disk
mkfifo $N/fifo
cp /bin/true $N/suid; chown 0:0 $N/suid; chmod 4755 $N/suid
echo one >$N/one; ln $N/one $N/hard
truncate -s 1T $N/huge
(cd $N; for n in $(seq 100); do mkdir deeper; cd deeper; done; echo deep >file)
echo title >"$N/$(printf '\033]0;title\007')"
"""


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of the host with what a guest would like to have: a secret, and another lab's verdict."""
    made = tmp_path / "victim"
    made.mkdir()
    (made / "secret").write_text("secret")
    (made / "secret").chmod(0o600)
    other = tmp_path / "results/other/20260101T000000"
    other.mkdir(parents=True)
    (other / "verdict.json").write_text('{"verdict": "passed"}')
    return made


def evil(tmp_path: Path, victim: Path, last: str) -> Path:
    """Return a topology whose command does all that, and then this; a check on it fails."""
    script = EVIL.replace("VICTIM", str(victim)) + last
    works = {
        "evil": {"command": {"node": "a", "argv": ["sh", "-c", script], "seconds": 120}},
        "rtt": {"ping": {"from": "a", "to": "b", "seconds": 1}},
    }
    file = tmp_path / "hostile.yaml"
    links = [{"ends": ["a:eth0", "b:eth0"]}]
    checks = [{"metric": "rtt.loss_pct", "min": 50}]
    body = {"name": "hostile", "nodes": {"a": {}, "b": {}}, "links": links, "workloads": works, "checks": checks}
    file.write_text(json.dumps(body))
    return file


def abandoned() -> list[Path]:
    """Return the folders that guests wrote into and that nobody holds any more; other tests have guests as well."""
    found = []
    with open_folder(staging.parent()) as top:
        flock(top, LOCK_EX)  # none is made meanwhile
        for folder in staging.parent().iterdir():
            with suppress(OSError), open_folder(folder) as fd:  # gone, or held
                flock(fd, LOCK_EX | LOCK_NB)
                found.append(folder)
    return found


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def untouched(tmp_path: Path, victim: Path, run: Path) -> None:
    """Nothing of the host has changed, and the run has files and folders of ours."""
    assert (victim / "secret").read_text() == "secret"
    assert stat.S_IMODE((victim / "secret").stat().st_mode) == 0o600
    assert sorted(f.name for f in victim.iterdir()) == ["secret"]
    assert (tmp_path / "results/other/20260101T000000/verdict.json").read_text() == '{"verdict": "passed"}'
    assert not [f for place in (ROOT, ROOT / "testbed", tmp_path) for f in place.iterdir() if f.name == "evil"]
    for path in run.rglob("*"):
        found = path.lstat()
        assert stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode), path
        assert (found.st_uid, found.st_mode & 0o7022) == (os.geteuid(), 0), path
        assert found.st_nlink == 1 or path.is_dir(), path
        assert len(path.relative_to(run).parts) <= 2, path
    assert not abandoned()


def test_a_hostile_guest_leaves_the_raw_files_of_its_run_and_nothing_else(
    tmp_path: Path, victim: Path, name: str, guests: None
) -> None:
    words = ("--name", name, "--results", str(tmp_path / "results"), "--machine", "microvm", "--json")
    done = testbed("run", str(evil(tmp_path, victim, "true\n")), *words, timeout=PATIENCE)
    run = (tmp_path / "results/hostile/latest").resolve()
    said = (run / "a/evil.command.out").read_text()
    assert (done.returncode, "1 of 1 checks failed" in done.stderr) == (1, True), done.stderr + said
    untouched(tmp_path, victim, run)
    (summary,) = json.loads(done.stdout)
    assert summary["verdict"] == json.loads((run / "verdict.json").read_text())["verdict"] == "failed"
    assert (run / "topology.yaml").read_text() == (tmp_path / "hostile.yaml").read_text()
    assert json.loads((run / "manifest.json").read_text())["machine"] == "microvm"
    assert not (run / "report.html").exists()
    left = {f.name for f in (run / "a").iterdir()}
    assert "suid" in left, "a regular file is one, without its mode"
    assert not left & {"folder", "link", "disk", "fifo", "one", "hard", "deeper"}, said
    assert (run / "a/huge").stat().st_size == 0, "it could not be made that large"
    for what in ("a/link", "a/disk", "a/hard", r"a/\x1b]0;title\x07"):
        assert f"{what} is not taken into the results" in done.stderr
    assert "\x1b" not in done.stderr


def test_the_console_of_a_guest_that_kills_itself_is_a_file_of_ours(
    tmp_path: Path, victim: Path, name: str, guests: None
) -> None:
    last = "echo ssh-ed25519 AAAATHEATTACKER >/dev/console; echo c >/proc/sysrq-trigger\n"
    words = ("--name", name, "--results", str(tmp_path / "results"), "--machine", "microvm")
    done = testbed("run", str(evil(tmp_path, victim, last)), *words, timeout=PATIENCE)
    assert (done.returncode, "its kernel panicked" in done.stderr) == (3, True), done.stderr
    (run,) = (f for f in (tmp_path / "results/hostile").iterdir() if f.is_dir() and not f.is_symlink())
    untouched(tmp_path, victim, run)
    assert "AAAATHEATTACKER" in (run / "console.log").read_text(errors="replace")
    assert json.loads((run / "verdict.json").read_text())["verdict"] == "error"
    assert name not in reach.names(reach.GUESTS)
