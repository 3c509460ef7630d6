"""What is taken from a guest and from another machine: played by who would like to leave more than files."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import LabError
from testbed.machines import case, collected
from testbed.machines.collected import Taken, collect
from testbed.machines.guest import staging
from testbed.machines.ssh import remote, request
from testbed.results import Folder
from tests.kernel.others import NOBODY, as_other
from tests.strategies import examples


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """The folder that a guest writes into, with the raw files of a run."""
    folder = tmp_path / "guest"
    (folder / "a").mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    (folder / "a/rtt.ping.txt").write_text("64 bytes\n")
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A results folder of ours."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "topology.yaml").write_text("name: ours\n")
    return folder


def found(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if not f.is_dir()}


RAW = {"topology.yaml": b"name: ours\n", "run.json": b"{}", "a/rtt.ping.txt": b"64 bytes\n"}


def test_raw_files_come_with_modes_of_ours(guest: Path, here: Path) -> None:
    (guest / "a/rtt.ping.txt").chmod(0o6777)
    collect(guest, Taken(here))
    assert found(here) == RAW
    modes = {stat.S_IMODE(f.lstat().st_mode) for f in here.rglob("*") if f.name != "topology.yaml"}
    assert modes <= {0o644 & ~umask(), 0o755 & ~umask()}


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_what_is_no_raw_file_of_its_own_stays_there_and_is_named(guest: Path, here: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret")
    (guest / "a/link").symlink_to(victim)
    (guest / "folder").symlink_to(tmp_path)
    os.mkfifo(guest / "a/fifo")
    os.link(victim, guest / "a/hard")
    (guest / "a/b/c/d").mkdir(parents=True)
    (guest / "a/b/c/d/deep").write_text("deep")
    (guest / "a/\x1b]0;title\x07").write_text("a title")
    if os.geteuid() == 0:
        os.mknod(guest / "a/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    taken = Taken(here)
    collect(guest, taken)
    assert found(here) == RAW
    assert {"a/link", "folder", "a/fifo", "a/hard", "a/b", r"a/\x1b]0;title\x07"} <= taken.left.keys()
    assert victim.read_text() == "secret"


def test_a_link_or_a_device_that_a_guest_made_is_a_file_with_an_attribute_here_and_is_not_taken(
    guest: Path, here: Path
) -> None:
    for name, kind in (("link", stat.S_IFLNK), ("disk", stat.S_IFBLK)):
        (guest / "a" / name).write_text("/etc/shadow")
        os.setxattr(guest / "a" / name, "user.virtfs.mode", (kind | 0o777).to_bytes(4, "little"))
    (guest / "a/plain").write_text("plain")
    os.setxattr(guest / "a/plain", "user.virtfs.mode", (stat.S_IFREG | 0o4755).to_bytes(4, "little"))
    taken = Taken(here)
    collect(guest, taken)
    assert found(here) == {**RAW, "a/plain": b"plain"}
    assert taken.left.keys() == {"a/link", "a/disk"}


OURS = ("metrics.json", "verdict.json", "junit.xml", "report.html", "manifest.json", "console.log", "topology.yaml")


def test_what_is_derived_or_an_input_is_ours_whatever_a_guest_says(guest: Path, here: Path) -> None:
    planned = ("effective.yaml", "plan.json", "plan.txt", "experiment.yaml")
    for name in (*OURS, *planned, "summary.json", ".metrics.json", "latest"):
        (guest / name).write_text('{"verdict": "passed"}')
    collect(guest, Taken(here))
    assert found(here) == RAW


def test_names_that_are_taken_by_links_in_the_results_are_an_error_and_nothing_is_followed(
    guest: Path, here: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("secret")
    (here / "run.json").symlink_to(victim)
    with pytest.raises(LabError, match=r"the results can't be written: .*run\.json: File exists"):
        collect(guest, Taken(here))
    assert victim.read_text() == "secret"


def test_files_folders_and_bytes_are_bounded_with_a_sentence(
    guest: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (guest / "a/huge").touch()
    os.truncate(guest / "a/huge", collected.BYTES)
    with pytest.raises(LabError, match="the results are not whole: they are more than 16 GiB"):
        collect(guest, Taken(here))
    (guest / "a/huge").unlink()
    monkeypatch.setattr(collected, "FILES", 10)
    for n in range(20):
        (guest / f"a/{n}").touch()
    (here / "more").mkdir()
    with pytest.raises(LabError, match="the results are not whole: they are more than 10 files"):
        collect(guest, Taken(here / "more"))
    monkeypatch.setattr(collected, "ENTRIES", 10)
    (here / "most").mkdir()
    with pytest.raises(LabError, match="the results are not whole: more than 10 entries"):
        collect(guest, Taken(here / "most"))


def test_a_hole_in_a_guests_file_takes_no_room_here(guest: Path, here: Path) -> None:
    with open(guest / "a/sparse", "wb") as file:
        for at in (1 << 20, 5 << 20):
            file.seek(at)
            file.write(b"data" * 2048)
        file.truncate(64 << 20)
    collect(guest, Taken(here))
    assert (here / "a/sparse").read_bytes() == (guest / "a/sparse").read_bytes()
    assert (here / "a/sparse").stat().st_blocks * 512 < 1 << 20


def test_names_that_a_guest_foresaw_do_not_keep_a_folder_from_being_removed(tmp_path: Path) -> None:
    folder = tmp_path / "guest"
    for n in range(20):
        (folder / f"a{n}/inner/file").mkdir(parents=True)
        (folder / f".moved-{n}-{os.getpid()}/file").mkdir(parents=True)
    staging.discard(folder)
    assert not folder.exists()


def test_a_guest_that_goes_on_writing_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "guest"
    folder.mkdir()
    test = os.getpid()
    if (child := os.fork()) == 0:
        try:
            while os.getppid() == test:
                with suppress(OSError):
                    os.close(os.open(folder / "file", os.O_CREAT | os.O_WRONLY))
        finally:
            os._exit(0)
    try:
        staging.discard(folder, patience=0.1)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    staging.discard(folder)
    assert not folder.exists()


def test_modes_that_a_guest_of_our_own_user_set_keep_no_folder_from_being_removed(
    guest: Path, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (guest / "a/b/c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)  # another user may not come here by its path

    def harm() -> None:
        folder, taken = Path("guest"), Taken(Path("here"))
        for part in ("a/b/c", "a/b", "a"):
            (folder / part).chmod(0)
        collect(folder, taken)
        folder.chmod(0)
        collect(folder, taken)
        assert taken.left["guest"] == "the folder can't be read"
        staging.discard(folder)

    if os.geteuid() == 0:
        for file in (tmp_path, *tmp_path.rglob("*")):
            os.chown(file, NOBODY, NOBODY)
        assert as_other(harm) == 0
    else:
        harm()
    assert not guest.exists()


def test_a_folder_of_any_depth_and_width_is_removed_and_no_link_in_it_followed(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "guest"
    (victim / "inner").mkdir(parents=True)
    (victim / "inner/file").write_text("ours")
    folder.mkdir()
    (folder / "link").symlink_to(victim)
    at = os.open(folder, os.O_RDONLY)
    for _ in range(3000):  # longer than any path
        os.mkdir("deeper", dir_fd=at)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        inner = os.open("deeper", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    staging.discard(folder)
    assert not folder.exists()
    assert (victim / "inner/file").read_text() == "ours"


def test_the_folders_of_processes_that_were_killed_go_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with staging.folder() as first:
        (staging.parent() / "left").mkdir()
        (staging.parent() / "left/file").touch()
        with staging.folder() as second:
            assert sorted(staging.parent().iterdir()) == sorted((first, second))
    assert not list(staging.parent().iterdir())


def sent(*rows: tuple[str, bytes]) -> io.BytesIO:
    return io.BytesIO(b"".join(b"%d %s\n%s" % (len(data), os.fsencode(name), data) for name, data in rows) + b"\n")


def test_a_machines_files_come_as_they_were_sent(here: Path) -> None:
    taken = Taken(here)
    files = (("run.json", b"{}"), ("a/rtt.ping.txt", b"64 bytes\n"), ("about.json", b"{}"), ("verdict.json", b"lie"))
    assert remote._receive(sent(*files), taken)
    assert (found(here), taken.about) == (RAW, b"{}")


def test_a_size_that_is_no_files_is_the_end_of_what_a_machine_sends(here: Path) -> None:
    for size in (b"9" * 5000, b"-1", b"1e9", "\u00b2".encode(), b""):
        assert not remote._receive(io.BytesIO(size + b" a\n"), Taken(here))


def test_what_a_machine_sends_does_not_leave_the_folder(here: Path) -> None:
    names = ("../evil", "/etc/evil", "a/../../evil", "a/b/c", "", "a//b", "\x1b[2J", "a/" + "n" * 300)
    taken = Taken(here)
    assert remote._receive(sent(*((name, b"evil") for name in names), ("a/good", b"good")), taken)
    assert found(here) == {"topology.yaml": b"name: ours\n", "a/good": b"good"}
    assert not (here.parent / "evil").exists()


@examples(100)
@given(st.binary(max_size=200))
def test_no_bytes_of_a_machine_are_more_than_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with suppress(LabError):  # a size that is none here, or a name twice
        remote._receive(io.BytesIO(data), Taken(tmp_path_factory.mktemp("taken")))


def test_a_machine_sends_what_it_has_of_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    token = "0123456789abcdef"
    place = request.folder(token) / request.RESULTS
    (place / "a").mkdir(parents=True)
    (place / "run.json").write_text("{}")
    (place / "a/rtt.ping.txt").write_text("64 bytes\n")
    (place / "a/link").symlink_to("/etc/passwd")
    nothing = os.open(os.devnull, os.O_RDONLY)
    kept = os.dup(0)
    os.dup2(nothing, 0)
    try:
        request.collect(token)
    finally:
        os.dup2(kept, 0)
    assert remote._receive(io.BytesIO(capfdbinary.readouterr().out), Taken(here))
    assert found(here) == RAW
    assert place.exists(), "nobody has said thanks"


DEEP = b'{"unknown": ' + b"[" * 100_000  # deeper than a parser follows


def begun(folder: Path) -> tuple[case.Case, list[dict[str, object]]]:
    said: list[dict[str, object]] = []
    return case.Case(lambda about: Folder(folder), {}, said.append), said


def test_what_a_guest_says_of_a_run_is_progress_or_nothing(tmp_path: Path) -> None:
    run, said = begun(tmp_path)
    lines = [{"waiting": 3}, {"began": True}, {"started": 1.0}, {"t": 0.5, "step": "x"}, {"verdict": "passed"}]
    text = b"".join(json.dumps(row).encode() + b"\n" for row in lines)
    for part in (
        b'nonsense\n\xff\n[]\n{}\n{"t": 1e999, "step": "x"}\n',
        DEEP + b"\n",
        text[:30],
        text[30:],
        b"x" * (3 << 20),
        b"\n",
    ):
        run.hear(part)
    assert said == [{"waiting": 3}, {"started": 1.0}, {"t": 0.5, "step": "x"}]
    assert run.folder == Folder(tmp_path)
    assert len(run.inbox) < 1 << 20
    run.hear(b'{"failed": "[a] ping: no", "status": 1}\n')
    with pytest.raises(LabError, match="no"):
        run.ended(0, "guest")


def test_a_run_ends_as_is_decided_here(tmp_path: Path) -> None:
    for status in (0, 1, 2, 77):
        run, _ = begun(tmp_path)
        with pytest.raises(LabError, match=f"it ended with {status} and said no more"):
            run.ended(status, "guest")
    run, _ = begun(tmp_path)
    with pytest.raises(SystemExit) as e:
        run.ended(130, "guest")
    assert e.value.code == 130


ABOUT = {
    "python": "3.14.0",
    "kernel": {"release": "7.2", "version": "#1", "architecture": "x86_64"},
    "host": {"cpus": 2, "user": "root"},
    "tools": {"ping": "1"},
    "began": 1.0,
}


def test_what_a_guest_tells_of_itself_is_typed_and_nothing_else(tmp_path: Path) -> None:
    facts = case.facts(json.dumps({**ABOUT, "machine": "here", "accelerator": "kvm", "git": "lie"}).encode())
    assert facts == {**ABOUT, "resources": {}}
    for wrong in (b"", DEEP, b"[]", b"\xff", b'{"python": 3}', json.dumps({**ABOUT, "python": "x" * 400}).encode()):
        assert case.facts(wrong) == {}
