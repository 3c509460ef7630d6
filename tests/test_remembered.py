"""What was found present is remembered for a boot, and only while it must still be true."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from testbed import features
from testbed.features import Feature
from testbed.machines.probe import here, programs, remembered


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory of the user."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def module(tmp_path: Path) -> Feature:
    """A feature of a module that is loaded."""
    folder = tmp_path / "module"
    folder.mkdir()
    return replace(features.VETH, rests_on=(str(folder),))


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*")) if cache.exists() else []


def test_what_was_present_is_known_with_the_words_of_the_probe(cache: Path, module: Feature) -> None:
    remembered.keep({module: "it worked"}, [])
    assert remembered.recall([module, features.BRIDGE]) == {module: "it worked"}


def test_what_was_absent_is_never_kept(cache: Path, module: Feature) -> None:
    remembered.keep({}, [module])
    assert remembered.recall([module]) == {}
    assert files(cache) == []


def test_what_went_is_forgotten(cache: Path, module: Feature) -> None:
    remembered.keep({module: "it worked", features.BRIDGE: "so did this"}, [])
    remembered.keep({}, [module])
    assert remembered.recall([module, features.BRIDGE]) == {features.BRIDGE: "so did this"}


def test_a_module_that_is_unloaded_is_not_remembered(cache: Path, module: Feature) -> None:
    remembered.keep({module: "it worked"}, [])
    Path(module.rests_on[0]).rmdir()
    assert remembered.recall([module]) == {}


def test_a_sysctl_that_changed_is_not_what_was_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_look", lambda path: "10000\n")
    remembered.keep({features.USERNS: "it worked"}, [])
    assert features.USERNS in remembered.recall([features.USERNS])
    monkeypatch.setattr(remembered, "_look", lambda path: "0\n")
    assert remembered.recall([features.USERNS]) == {}


def test_a_program_that_was_upgraded_or_that_PATH_hides_is_asked_again(  # noqa: N802
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = replace(features.IPERF3_MPTCP, program="tool")
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "tool").write_text("#!/bin/sh\n")
        (folder / "tool").chmod(0o755)
    monkeypatch.setattr(programs, "_PATH", str(old))
    remembered.keep({feature: "it worked"}, [])
    assert feature in remembered.recall([feature])
    monkeypatch.setattr(programs, "_PATH", f"{new}:{old}")
    assert remembered.recall([feature]) == {}
    monkeypatch.setattr(programs, "_PATH", str(old))
    assert feature in remembered.recall([feature])
    (old / "tool").write_text("#!/bin/sh\nexit 1\n")
    assert remembered.recall([feature]) == {}
    (old / "tool").unlink()
    assert remembered.recall([feature]) == {}


@pytest.mark.parametrize("part", ["kernel", "testbed", "uid", "user namespace", "capabilities"])
def test_nothing_counts_that_another_kernel_version_or_privilege_found(cache: Path, module: Feature, part: str) -> None:
    remembered.keep({module: "it worked"}, [])
    (_, file) = files(cache)
    content = json.loads(file.read_text())
    content["key"][part] = "another"
    file.write_text(json.dumps(content))
    assert remembered.recall([module]) == {}
    remembered.keep({features.BRIDGE: "it worked"}, [])
    assert remembered.recall([module, features.BRIDGE]) == {features.BRIDGE: "it worked"}, "nor is it taken over"


def test_nothing_counts_that_somebody_else_may_have_written(cache: Path, module: Feature) -> None:
    remembered.keep({module: "it worked"}, [])
    (folder, file) = files(cache)
    for changed, mode in ((file, 0o622), (folder, 0o722)):
        before = changed.stat().st_mode
        changed.chmod(mode)
        assert remembered.recall([module]) == {}
        changed.chmod(before)
    assert remembered.recall([module]) == {module: "it worked"}
    file.unlink()
    os.mkfifo(file)
    assert remembered.recall([module]) == {}, "and nobody waits for a writer"


def test_the_files_of_earlier_boots_are_removed_and_others_are_not(cache: Path, module: Feature) -> None:
    folder = cache / "testbed"
    folder.mkdir(parents=True)
    for name in ("features-an-earlier-boot.json", "features-an-earlier-boot.77", "something-else.json"):
        (folder / name).touch()
    remembered.keep({module: "it worked"}, [])
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert {f.name for f in folder.iterdir()} == {f"features-{boot}.json", "something-else.json"}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"key": 1}', "\xff", '{"found": []}'])
def test_a_file_that_is_not_whole_is_as_none_and_is_replaced(cache: Path, module: Feature, text: str) -> None:
    remembered.keep({module: "it worked"}, [])
    (_, file) = files(cache)
    file.write_text(text)
    assert remembered.recall([module]) == {}
    remembered.keep({module: "it worked"}, [])
    assert remembered.recall([module]) == {module: "it worked"}


def test_a_cache_that_can_not_be_written_costs_time_and_nothing_else(
    tmp_path: Path, module: Feature, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", Path("/proc/nothing")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        remembered.keep({module: "it worked"}, [])
        assert remembered.recall([module]) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be at home in somebody else's folder")
def test_root_leaves_no_files_in_the_home_of_a_user(
    tmp_path: Path, module: Feature, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # and so does not count
    monkeypatch.setenv("HOME", str(home))
    remembered.keep({module: "it worked"}, [])
    assert list(home.iterdir()) == []


def test_a_finding_says_whether_it_is_remembered(cache: Path) -> None:
    wanted = [features.IPERF3_MPTCP, features.PING]
    assert not any(f.remembered for f in here.probe(wanted))
    again = here.probe(wanted)
    assert [f.remembered for f in again] == [again[0].present, False], "a look into PATH is not worth remembering"
    assert not any(f.remembered for f in here.probe(wanted, fresh=True))
