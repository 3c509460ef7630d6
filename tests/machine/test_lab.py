"""The command line on a microVM: what works here works there, by the same words and with the same statuses."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from testbed import features
from testbed.lab import reach
from testbed.machines import trusted
from testbed.machines.guest import image, microvm
from testbed.machines.probe import here
from tests.conftest import ROOT, testbed

pytestmark = [pytest.mark.machine, pytest.mark.xdist_group("lab")]

TWO = ROOT / "topologies/two-hosts.yaml"
CLI = (sys.executable, "-m", "testbed")
PATIENCE = 300  # s: the first guest is saved for the others


def results(folder: Path, topology: str) -> tuple[dict[str, float], dict[str, object]]:
    """Return the metrics and the manifest of the last run."""
    latest = folder / topology / "latest"
    metrics = json.loads((latest / "metrics.json").read_text())
    return {k: v["value"] for k, v in metrics.items()}, json.loads((latest / "manifest.json").read_text())


def has_netem() -> bool:
    return here.probe((features.QDISCS["netem"],))[0].present


@pytest.fixture(scope="module")
def lab(guests: None) -> Iterator[str]:
    name = f"t{uuid4().hex[:10]}"
    done = testbed("up", str(TWO), "--name", name, "--machine", "microvm", timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert f"lab {name} up in" in done.stdout
    yield name
    testbed("down", name)
    assert name not in reach.names(reach.GUESTS)


def said(lab: str, *argv: str, node: str = "client") -> str:
    done = testbed("exec", lab, node, "--", *argv)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_same_file_here_names_what_is_missing(tmp_path: Path, name: str) -> None:
    if has_netem():
        pytest.skip("this kernel has netem")
    file = str(ROOT / "topologies/netem-demo.yaml")
    done = testbed("run", file, "--name", name, "--results", str(tmp_path / "r"), "--machine", "here")
    assert done.returncode == 4
    assert "feature netem" in done.stderr
    assert not (tmp_path / "r").exists()


def test_a_node_is_a_node_and_reaches_its_neighbour(lab: str) -> None:
    assert said(lab, "hostname") == "client\n"
    assert sorted(said(lab, "ls", "/sys/class/net").split()) == ["eth0", "lo"]
    assert " 0% packet loss" in said(lab, "ping", "-c2", "-i0.2", "-q", "server")


def test_up_again_changes_nothing_and_another_file_changes_in_place(lab: str, tmp_path: Path) -> None:
    done = testbed("up", str(TWO), "--name", lab)
    assert (done.returncode, "unchanged" in done.stdout) == (0, True), done.stderr
    other = tmp_path / "other.yaml"
    other.write_text(TWO.read_text().replace("rate: 50mbit", "rate: 50mbit, delay: 20ms"))
    done = testbed("up", str(other), "--name", lab, "--dry-run")
    assert "+ [client] tc qdisc replace dev eth0" in done.stdout
    done = testbed("up", str(other), "--name", lab)
    assert (done.returncode, "changed" in done.stdout) == (0, True), done.stderr
    assert "delay 20ms" in said(lab, "tc", "qdisc", "show", "dev", "eth0")
    rows = json.loads(testbed("status", "--json").stdout)
    assert [r["machine"] for r in rows if r["name"] == lab] == ["microvm"]
    assert "client" in testbed("status", lab).stdout


def test_a_lab_is_on_one_machine(lab: str) -> None:
    done = testbed("up", str(TWO), "--name", lab, "--machine", "here")
    assert done.returncode == 3
    assert f"lab {lab}: it is up on machine microvm" in done.stderr


def test_a_check_that_fails_and_a_node_that_is_not_there(lab: str, tmp_path: Path, name: str) -> None:
    file = tmp_path / "elsewhere.yaml"  # the guest has the files' texts, and neither of the folders
    file.write_text(f"name: two-hosts\ntopology: {TWO}\n")
    words: tuple[str, ...] = ("--set", "workloads.bulk.iperf3.seconds=1", "--set", "workloads.rtt.ping.seconds=1")
    words += ("--set", "links.cable.rate=5mbit")
    words += ("--set", "checks=[{metric: bulk.goodput_mbps, min: 500}]", "--results", str(tmp_path))
    done = testbed("run", str(file), "--name", name, "--machine", "microvm", *words, timeout=PATIENCE)
    assert done.returncode == 1, done.stderr
    assert "FAIL  bulk.goodput_mbps" in done.stdout
    assert str(tmp_path / "two-hosts") in done.stdout, "the folder as it is called here"
    metrics, _ = results(tmp_path, "two-hosts")
    assert 2 < metrics["bulk.goodput_mbps"] < 5, "the rate is the one that was set here"
    assert testbed("report", str(tmp_path / "two-hosts/latest")).returncode == 1
    assert testbed("exec", lab, "nobody", "--", "true").returncode == 125


def test_ctrl_c_of_a_run_leaves_nothing(tmp_path: Path, name: str, guests: None) -> None:
    words = (*CLI, "run", str(TWO), "--name", name, "--results", str(tmp_path), "--machine", "microvm")
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        while "iperf3 -c" not in (row := process.stderr.readline()):
            assert row, "it has begun"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert name not in reach.names(reach.GUESTS)
    assert (tmp_path / "two-hosts").is_dir()


def test_a_guest_that_is_killed_in_mid_run_is_told_with_the_end_of_its_console(
    tmp_path: Path, name: str, guests: None
) -> None:
    words = (*CLI, "run", str(TWO), "--name", name, "--results", str(tmp_path), "--machine", "microvm")
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        while "iperf3 -c" not in (row := process.stderr.readline()):
            assert row, "it has begun"
        began = time.monotonic()
        keeper = microvm.find(name).holder
        for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"qemu-system"):
                os.kill(int(child), signal.SIGKILL)
        assert process.wait(timeout=60) == 3
        assert time.monotonic() - began < 10
        told = process.stderr.read()
    assert "QEMU was killed by SIGKILL" in told
    assert "the end of its console" in told
    assert name not in reach.names(reach.GUESTS)
    [console] = (tmp_path / "two-hosts").glob("2*/console.log")
    assert console.read_bytes()


def test_a_warning_of_the_guests_kernel_fails_the_run(tmp_path: Path, name: str, guests: None) -> None:
    file = tmp_path / "warned.yaml"
    says = "<4>WARNING: CPU: 0 PID: 1 at net/mptcp/protocol.c:1 test"
    file.write_text(
        "name: warned\nnodes: {a: {}}\nlinks: []\n"
        f"workloads:\n  w: {{command: {{node: a, argv: [sh, -c, 'echo \"{says}\" >/dev/kmsg'], seconds: 2}}}}\n"
    )
    done = testbed(
        "run", str(file), "--name", name, "--results", str(tmp_path), "--machine", "microvm", timeout=PATIENCE
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "the guest's kernel says: WARNING: CPU: 0" in done.stderr
    assert "net/mptcp/protocol.c" in (tmp_path / "warned/latest/dmesg.log").read_text()


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guests: None) -> Path:
    """The folder of a copy of the image, in a cache of the test's own."""
    made = image.find()
    assert made is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = image.cache() / made.digest
    folder.mkdir(parents=True)
    for file in (*image.FILES, "manifest.json"):
        shutil.copy(made.folder / file, folder)
    return folder


def unnoticed(folder: Path) -> None:
    """Let a change of an image look like one of the disk's own: no time of a file tells."""
    (folder / trusted.RECORD).unlink(missing_ok=True)
    names = ("vmlinux", "vmlinuz", "initrd.gz", "root.squashfs")
    trusted.remember(folder, [name for name in names if (folder / name).exists()])


@pytest.mark.parametrize("part", ["begin", "all"])
def test_an_image_that_was_damaged_is_named_with_its_cure(copied: Path, name: str, part: str) -> None:
    file = copied / "root.squashfs"
    with file.open("r+b") as root:
        for place in range(4096 if part == "all" else 0, file.stat().st_size, 8192 if part == "all" else 1 << 30):
            root.seek(place)
            root.write(bytes(4096))
    cure = f"image {copied.name} is damaged (root.squashfs): `testbed image build --again` builds it again"
    if part == "begin":  # a change that the file's times tell is found before anything is booted
        done = testbed("up", str(TWO), "--name", name, "--machine", "microvm", timeout=PATIENCE)
        assert (done.returncode, cure in done.stderr, "console" in done.stderr) == (3, True, False), done.stderr
    unnoticed(copied)
    began = time.monotonic()
    done = testbed("up", str(TWO), "--name", name, "--machine", "microvm", timeout=PATIENCE)
    assert done.returncode == 3, done.stdout + done.stderr
    assert cure in done.stderr
    assert "the end of its console" in done.stderr
    assert time.monotonic() - began < 60, "what its own init says is not waited out"
    assert name not in reach.names(reach.GUESTS)
    assert not list(copied.glob("*saved-*/*")), "and nothing of it was saved"


def test_a_guest_whose_kernel_panics_at_boot_is_booted_once_more_and_then_told(copied: Path, name: str) -> None:
    initrd = copied / "initrd.gz"
    size = initrd.stat().st_size
    initrd.write_bytes(gzip.compress(b"") + bytes(size))  # without an init
    os.truncate(initrd, size)
    unnoticed(copied)
    done = testbed("up", str(TWO), "--name", name, "--machine", "microvm", timeout=PATIENCE)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "its kernel panicked while it was booted; it is booted once more" in done.stderr
    assert f"image {copied.name} is damaged (initrd.gz): " in done.stderr
    assert "Kernel panic - not syncing: " in done.stderr
    assert "Traceback" not in done.stderr
    assert name not in reach.names(reach.GUESTS)


def test_an_image_that_is_not_whole_is_not_taken_for_one(copied: Path) -> None:
    assert image.find() is not None
    os.truncate(copied / "root.squashfs", 1 << 20)
    assert image.find() is None
    assert testbed("image", "ls").stdout == "no image is there; `testbed image build` makes one\n"


# Most of the guest's memory is set aside for huge pages, which nobody uses: the rest is full within seconds, and no
# other guest is booted and saved for a size of its own.
SMALL = "echo 800 >/proc/sys/vm/nr_hugepages"
HOG = "kept = []\nwhile True: kept.append(b'x' * (1 << 22))"


def test_a_run_in_a_guest_that_is_out_of_memory_fails_with_the_kernels_words(
    tmp_path: Path, name: str, guests: None
) -> None:
    file = tmp_path / "hog.yaml"
    script = f'{SMALL}; exec python3 -c "$0"'
    work = {"hog": {"command": {"node": "a", "argv": ["sh", "-c", script, HOG], "seconds": 60}}}
    file.write_text(json.dumps({"name": "hog", "nodes": {"a": {}}, "workloads": work}))
    words = ("--name", name, "--results", str(tmp_path), "--machine", "microvm")
    done = testbed("run", str(file), *words, timeout=PATIENCE)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "hog.command ended with signal SIGKILL" in done.stdout
    assert "the guest's kernel says: Out of memory: Killed process" in done.stdout
    assert name not in reach.names(reach.GUESTS)


def test_a_lab_whose_guest_is_out_of_memory_is_told_in_the_kernels_words(name: str, guests: None) -> None:
    words = ("--name", name, "--machine", "microvm")
    assert testbed("up", str(TWO), *words, timeout=PATIENCE).returncode == 0
    fill = f"{SMALL}; for f in /tmp/a /dev/shm/b /root/c; do head -c 1G /dev/zero >$f & done; wait; sleep 1000"
    done = testbed("exec", name, "client", "--", "sh", "-c", fill)
    assert done.returncode == 125, done.stdout + done.stderr
    if "it hangs: no sign of life" not in done.stderr:
        assert f"guest {name}: its kernel says: Out of memory: Killed process" in done.stderr
        assert testbed("down", name).returncode == 0
    assert name not in reach.names(reach.GUESTS)


def test_doctor_in_the_guest_shows_every_feature(guests: None) -> None:
    done = testbed("doctor", "--machine", "microvm", "--json", timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    absent = [f"{f['feature']}: {f['known']}" for f in json.loads(done.stdout)["features"] if not f["present"]]
    assert not absent
