"""Files that are run with our rights: another user owns them, may write to them, or has changed them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from testbed.errors import InputError, LabError
from testbed.machines import trusted
from testbed.machines.guest import booted, image, recipe, saved
from testbed.machines.ssh import known
from tests.conftest import testbed
from tests.test_image import put

OTHER = 12345
rooted = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of another user")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "cache/images/digest"
    folder.mkdir(mode=0o755, parents=True)
    (folder / "root").write_text("root")
    return folder


def opens(path: Path) -> str:
    fd = trusted.opened(path)
    try:
        return os.pread(fd, 100, 0).decode()
    finally:
        os.close(fd)


def test_a_file_of_ours_below_folders_of_ours_or_roots_is_opened(home: Path) -> None:
    assert opens(home / "root") == "root"
    (home / "link").symlink_to("../digest/./root")
    (home.parent / "far").symlink_to(home)
    assert opens(home / "link") == opens(home.parent / "far/link") == "root"


@rooted
@pytest.mark.parametrize("which", ["root", "", "..", "../.."])
@pytest.mark.parametrize("harm", ["owner", "group", "everybody"])
def test_a_file_that_somebody_else_can_change_or_replace_is_refused_by_name_with_a_cure(
    home: Path, which: str, harm: str
) -> None:
    bad = (home / which).resolve()
    if harm == "owner":
        os.chown(bad, OTHER, OTHER)
    else:
        bad.chmod(bad.stat().st_mode | (0o020 if harm == "group" else 0o002))
    says = {"owner": f"belongs to user {OTHER}", "group": "group 0 may write", "everybody": "everybody may write"}
    with pytest.raises(LabError, match=says[harm]) as e:
        trusted.opened(home / "root")
    assert str(bad) in str(e.value)
    assert "chmod go-w" in str(e.value)


@rooted
def test_a_link_of_somebody_elses_is_not_followed(home: Path) -> None:
    shared = home.parents[1] / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "image").symlink_to(home / "root")
    os.lchown(shared / "image", OTHER, OTHER)
    with pytest.raises(LabError, match=f"belongs to user {OTHER}"):
        trusted.opened(shared / "image")
    (home / "loop").symlink_to("loop")
    with pytest.raises(LabError, match="there are too many symbolic links"):
        trusted.opened(home / "loop")
    os.mkfifo(home / "fifo")
    with pytest.raises(LabError, match="is neither a file nor a folder"):
        trusted.opened(home / "fifo")


@rooted
def test_no_folder_is_made_where_a_link_of_somebody_elses_leads(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/cache").symlink_to(tmp_path / "etc")
    os.chown(tmp_path / "theirs", OTHER, OTHER)
    with pytest.raises(LabError, match=f"belongs to user {OTHER}"):
        trusted.folder(tmp_path / "theirs/cache/testbed/images")
    assert not list((tmp_path / "etc").iterdir())


def test_a_umask_leaves_nothing_that_others_can_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    before = os.umask(0)
    try:
        made = saved.make(trusted.folder(tmp_path / "images"), "digest", "code", lambda folder: None, lambda: None)
        assert saved.find(made.parent, "digest", "new") == saved.find(made.parent, "digest", "code") == made
        assert saved.find(made.parent, "digest", "new") is None, "it was met before"
        known.add(known.Known("lab", "ssh://host", "testbed"))
        assert list(known.machines()) == ["lab"]
    finally:
        os.umask(before)


@rooted
def test_a_list_of_machines_of_somebody_elses_runs_no_command_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = trusted.folder(tmp_path / "testbed") / "machines.json"
    row = {"name": "lab", "url": "ssh://host", "program": "testbed", "options": ["ProxyCommand=id"]}
    file.write_text(json.dumps([row]))
    os.chown(file, OTHER, OTHER)
    with pytest.raises(InputError, match=f"belongs to user {OTHER}.*XDG_CONFIG_HOME"):
        known.machines()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        known.machines()


def test_a_lock_is_no_link_to_a_file_that_it_would_empty(home: Path) -> None:
    (home / ".lock").symlink_to(home / "root")
    with pytest.raises(LabError, match="it can't be locked"):
        trusted.lock(home / ".lock")
    assert opens(home / "root") == "root"


def test_digests_are_computed_of_what_changed_and_of_nothing_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    real = trusted._sparsely

    def counted(fd: int) -> str:
        computed.append(fd)
        return real(fd)

    monkeypatch.setattr(trusted, "_sparsely", counted)

    def damaged() -> tuple[str, ...]:
        found = trusted.verified(home, ["root"], {})
        found.close()
        return found.damaged

    trusted.remember(home, ["root"])
    before = len(computed)
    assert damaged() == damaged() == ()
    assert len(computed) == before, "nothing has changed"
    os.utime(home / "root")
    assert damaged() == damaged() == ()
    assert len(computed) == before + 1, "it was only touched"
    times = (home / "root").stat()
    (home / "root").write_text("evil")
    os.utime(home / "root", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert damaged() == damaged() == ("root",), "the time of its inode tells"


def test_a_memory_is_known_by_its_blocks_wherever_its_holes_are(home: Path) -> None:
    ram = home / "ram"
    for holes in (True, False):
        with ram.open("wb") as file:
            if holes:
                file.truncate(8 << 20)
            else:
                file.write(bytes(8 << 20))
            file.seek(5 << 20)
            file.write(b"memory")
        if holes:
            trusted.remember(home, ["ram"])
        found = trusted.verified(home, ["ram"], {})
        found.close()
        assert found.damaged == ()


def test_a_saved_guest_that_was_changed_or_was_saved_by_who_knows_whom_is_damaged(home: Path) -> None:
    for name in saved.FILES:
        (home / name).write_text(name)

    def damaged() -> tuple[str, ...]:
        found = saved.opened(home)
        found.close()
        return found.damaged

    assert damaged() == saved.FILES
    trusted.remember(home, saved.FILES)
    assert damaged() == ()
    (home / "state").write_text("other")
    assert damaged() == ("state",)


@rooted
def test_an_image_of_another_users_is_refused_at_each_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    put(image.cache() / recipe.digest())
    found = image.find()
    assert found is not None
    (found.folder / "vmlinux").write_text("plain")
    os.close(booted.files(found, booted.booted(found, "tcg"))[0])
    os.chown(found.root, OTHER, OTHER)
    with pytest.raises(LabError, match=f"root.squashfs belongs to user {OTHER}"):
        booted.files(found, booted.booted(found, "tcg"))
    os.chown(found.root, 0, 0)
    found.initrd.write_text("initrd.xy")
    with pytest.raises(LabError, match=r"image .* is damaged \(initrd\.gz\): `testbed image build --again`"):
        booted.files(found, booted.booted(found, "tcg"))
    os.chown(image.cache(), OTHER, OTHER)
    done = testbed("image", "ls")
    assert (done.returncode, f"belongs to user {OTHER}" in done.stderr) == (3, True), done.stderr
