"""How the program ends: whatever goes wrong, in a sentence, and never with the exit status of a regression."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testbed import __version__
from testbed.errors import BugError, LabError
from testbed.linux.faults import foreseen, known
from tests.conftest import ROOT

TWO = str(ROOT / "topologies/two-hosts.yaml")
PROGRAM = (sys.executable, "-m", "testbed")


def run(shell: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line by a line of shell, in which it is "$@"."""
    return subprocess.run(
        ("bash", "-c", shell, "bash", *PROGRAM, *words),
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def performed(body: str) -> subprocess.CompletedProcess[str]:
    """Run a verb with this body in the program."""
    code = f"import os, signal, sys\nfrom testbed.cli import process\ndef verb():\n    {body}\nprocess.perform(verb)\n"
    return subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("{}['x']", "KeyError: 'x'"),
        ("raise SyntaxError('odd')", "SyntaxError: odd"),
        ("raise EOFError", "EOFError"),
        ("open('/no/such/file')", "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'"),
        ("verb()", "RecursionError: maximum recursion depth exceeded"),
        ("os.close(-1)", "OSError: [Errno 9] Bad file descriptor"),
    ],
)
def test_a_bug_ends_with_70_and_says_what_to_report(body: str, what: str) -> None:
    done = performed(body)
    assert (done.returncode, done.stdout) == (70, "")
    rows = done.stderr.splitlines()
    assert rows[0].startswith(f"testbed: a bug in testbed: {what}")
    assert rows[1] == "Traceback (most recent call last):"
    assert rows[-1].startswith("testbed: please report it with all of the above: ")
    for word in (
        f"testbed {__version__}",
        f"Python {sys.version.split()[0]}",
        f"Linux {os.uname().release}",
        ", testbed",
    ):
        assert word in rows[-1]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("raise MemoryError", "there is not enough memory"),
        ("os.mkdir('/tmp/' + 'y' * 300)", "the name is too long"),
        ("open('/etc/passwd/x')", "/etc/passwd/x: a part of the path is not a folder"),
        ("open('/dev/full', 'w').write('x' * 1_000_000)", "no space is left on the device"),
        (
            "import _ctypes, importlib.machinery as m; m.ExtensionFileLoader('x', '/dev/null.so').load_module()",
            "library",
        ),
    ],
)
def test_what_a_machine_may_refuse_is_no_bug(body: str, what: str) -> None:
    done = performed(body)
    assert (done.returncode, done.stdout) == (3, "")
    assert what in done.stderr
    assert done.stderr.startswith("testbed: ")
    assert len(done.stderr.splitlines()) == 1


@contextmanager
def cleaned_up_badly() -> Iterator[None]:
    try:
        yield
    finally:
        raise LabError("and then the clean-up failed")


def test_the_end_of_the_program_is_no_error_whatever_is_made_of_it() -> None:
    with pytest.raises(SystemExit) as ended, foreseen(), cleaned_up_badly():
        raise SystemExit(130)
    assert ended.value.code == 130
    with pytest.raises(BugError, match="KeyError"), foreseen():
        raise KeyError("x")
    error = LabError("as it is")
    assert known(error) is error


FULL = "testbed: standard output can't be written: No space left on device\n"


@pytest.mark.parametrize("words", ["status", "schema", f"plan {TWO}", "--version", "--help"])
def test_output_that_can_not_be_written_is_said(words: str) -> None:
    done = run('"$@" > /dev/full', *words.split())
    assert (done.returncode, done.stderr) == (3, FULL)


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ('"$@" check /none 2>/dev/full', 2),
        ('"$@" check /none 2>&-', 2),
        ('"$@" check /none >&- 2>&- <&-', 2),
        ('"$@" check /none >/dev/full 2>/dev/full', 2),
        ('"$@" schema >/dev/full 2>/dev/full', 3),
        ('"$@" schema >&-', 0),
    ],
)
def test_the_exit_status_is_right_also_where_nothing_can_be_said(shell: str, status: int) -> None:
    done = run(shell)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def test_who_is_not_read_any_more_ends_as_if_by_sigpipe() -> None:
    source, sink = os.pipe()
    os.close(source)
    done = subprocess.run((*PROGRAM, "status"), cwd=ROOT, stdout=sink, stderr=subprocess.PIPE, check=False)
    os.close(sink)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_working_directory_that_was_removed_is_said_or_does_not_matter(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    for words, status, said in (
        (("status",), 0, ""),
        (("plan", TWO), 0, ""),
        (("check", "x.yaml"), 2, "x.yaml: can't be read: No such file or directory"),
        (("report", "results"), 2, "results: is not a results folder"),
        (("run", TWO), 3, "testbed: the working directory was removed: change to one that exists"),
    ):
        done = run(f'mkdir -p {gone}; cd {gone}; rmdir {gone}; "$@"', *words)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
        assert said in done.stderr


@pytest.mark.parametrize(
    "env",
    [
        "env -u HOME",
        "env -u HOME -u XDG_CACHE_HOME -u XDG_CONFIG_HOME -u PATH",
        "env HOME=/proc/nothing XDG_CACHE_HOME=/proc/cache XDG_CONFIG_HOME=/proc/config XDG_RUNTIME_DIR=/proc/run",
        "env HOME=relative XDG_CACHE_HOME=/dev/null XDG_CONFIG_HOME=/dev/null",
        "env TMPDIR=/nonexistent",
        "env PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 LC_ALL=C",
        "env -i",
    ],
)
def test_an_odd_environment_is_survived_or_said(env: str, tmp_path: Path) -> None:
    (tmp_path / "größe.yaml").write_text("name: lab\nnodes: {a: {}}\ndescription: größe\n", encoding="utf-8")
    for words, statuses in (
        (("check", str(tmp_path / "größe.yaml")), {0}),
        (("doctor", "--machine", "here", str(tmp_path / "größe.yaml")), {0, 4}),
        (("machine", "ls"), {0, 2}),
        (("image", "ls"), {0, 2}),
    ):
        done = run(f'{env} "$@"', *words)
        assert done.returncode in statuses, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("limit", ["-n 5", "-n 12", "-v 60000", "-v 90000", "-f 0"])
def test_a_limit_of_the_shell_is_said(limit: str) -> None:
    """Below some of these Python itself does not start; when it has, the program says what is lacking."""
    done = run(f'ulimit {limit}; "$@"', "plan", TWO)
    started = "Fatal Python error" not in done.stderr and "error while loading shared libraries" not in done.stderr
    if done.returncode not in (127, 139) and started:
        assert done.returncode in (0, 3), (limit, done.returncode, done.stderr)
        assert (done.returncode == 0) == (done.stderr == "")
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody whom nobody knows")
def test_warnings_of_libraries_are_no_bugs_of_ours() -> None:
    done = run('"$@"', "check", TWO, PYTHONWARNINGS="error")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_without_a_home_is_told_what_to_set() -> None:
    unknown = 'exec env -u HOME -u XDG_CACHE_HOME -u XDG_CONFIG_HOME setpriv --reuid 54321 --clear-groups "$@"'
    for words, named in ((("machine", "ls"), "XDG_CONFIG_HOME"), (("image", "ls"), "XDG_CACHE_HOME")):
        done = run(unknown, *words)
        assert done.returncode == 2, done.stderr
        assert done.stderr == f"there is no home directory: set HOME, or {named}, to an absolute path\n"
