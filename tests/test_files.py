"""What may be read because a command line or a file names it: nothing that hangs, grows without end or is elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.language.files import MOST, content, root_of
from tests.kept import Say, say

__all__ = ["say"]
LAB = "name: lab\nnodes: {a: {}}\n"


def test_a_pipe_without_a_writer_is_refused_at_once(say: Say, tmp_path: Path) -> None:
    pipe = tmp_path / "lab.yaml"
    os.mkfifo(pipe)
    said = "it is a named pipe, and must be an ordinary file: save its content in one"
    assert say("check", str(pipe)) == (2, "", f"{pipe}: can't be read: {said}\n")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/full"])
def test_a_device_is_refused_and_not_read(say: Say, tmp_path: Path, device: str) -> None:
    assert "it is a device" in say("check", device)[2]
    experiment = tmp_path / "lab.yaml"
    experiment.write_text(f"topology: {device}\n")
    status, _, err = say("check", str(experiment))
    assert status == 2
    assert "lab.yaml:1:11: " in err
    assert "it is a device" in err


def test_a_file_without_end_is_read_up_to_its_limit(say: Say, tmp_path: Path) -> None:
    sparse = tmp_path / "lab.yaml"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    assert say("check", str(sparse)) == (
        2,
        "",
        f"{sparse}: can't be read: it has more than 16 MiB, the most that is read\n",
    )
    (tmp_path / "whole.yaml").write_text(LAB + " " * (MOST - len(LAB)))
    assert say("check", str(tmp_path / "whole.yaml"))[0] == 0
    with pytest.raises(OSError, match="more than 1 MiB"):
        content(tmp_path / "whole.yaml", 1 << 20)


def test_the_topology_of_an_experiment_is_where_its_path_says(say: Say, tmp_path: Path) -> None:
    (tmp_path / "labs/sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    outside, inside = tmp_path / "elsewhere/secret.yaml", tmp_path / "labs/sub/real.yaml"
    for file in (outside, inside):
        file.write_text(LAB)
    (tmp_path / "labs/link-in.yaml").symlink_to("sub/real.yaml")
    (tmp_path / "labs/link-out.yaml").symlink_to("../elsewhere/secret.yaml")
    (tmp_path / "labs/out").symlink_to("../elsewhere")
    (tmp_path / "labs/loop.yaml").symlink_to("loop.yaml")

    def check(named: str) -> tuple[int, str]:
        (tmp_path / "labs/experiment.yaml").write_text(f"topology: {named}\n")
        status, _, err = say("check", str(tmp_path / "labs/experiment.yaml"))
        return status, err

    for named in ("sub/real.yaml", "./sub/../sub/real.yaml", "link-in.yaml", "../elsewhere/secret.yaml", str(outside)):
        assert check(named) == (0, ""), named
    for named in ("link-out.yaml", "out/secret.yaml", "sub/../link-out.yaml", str(tmp_path / "labs/link-out.yaml")):
        status, err = check(named)
        assert status == 2, named
        assert f"a link leads out of {tmp_path}/labs: name the file that it leads to" in err
        assert "secret" not in err.replace(named, "")
    assert "Too many levels of symbolic links" in check("loop.yaml")[1]


def test_a_path_says_how_far_above_a_file_may_be(tmp_path: Path) -> None:
    assert root_of(tmp_path, "a/b.yaml") == tmp_path
    assert root_of(tmp_path, "../b.yaml") == tmp_path.parent
    assert root_of(tmp_path, "a/../../b.yaml") == tmp_path.parent
    assert root_of(tmp_path, "../" * 99 + "b.yaml") == Path("/")
    assert root_of(tmp_path, "/etc/b.yaml") == Path("/etc")
