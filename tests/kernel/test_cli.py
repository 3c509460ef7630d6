"""The command line as people and scripts use it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import ROOT, testbed

pytestmark = pytest.mark.kernel

TREE = str(ROOT / "topologies/tree.yaml")
TWO = str(ROOT / "topologies/two-hosts.yaml")


@pytest.fixture(scope="module")
def tree() -> Iterator[tuple[str, str]]:
    """The name of a lab that is up, and what `up` said of it."""
    name = f"t{uuid4().hex[:10]}"
    done = testbed("up", TREE, "--name", name)
    assert done.returncode == 0, done.stderr
    yield name, done.stdout
    assert testbed("down", name).returncode == 0


def test_up_says_what_is_where_on_one_screen(tree: tuple[str, str]) -> None:
    name, said = tree
    rows = said.splitlines()
    assert rows[0].startswith(f"lab {name} up in ")
    assert any("core" in r and "10.0.1.1/30 2001:db8:0:1::1/64" in r for r in rows)
    assert len(rows) <= 24


# A closed port answers with a reset: who is refused has been there and back. One process asks all, where a ping each
# would take an emulated processor minutes.
REACHED = """
import socket, sys
for address in sys.argv[1:]:
    try:
        socket.create_connection((address, 9), 5)
    except ConnectionRefusedError:
        continue
    except OSError as e:
        print(address, e)
"""


def test_every_node_of_a_tree_reaches_every_other_by_both_families(tree: tuple[str, str]) -> None:
    name, _ = tree
    found = json.loads(testbed("status", name, "--json").stdout)["interfaces"]
    hosts = {n: [a.partition("/")[0] for _, text in i for a in text.split()] for n, i in found.items()}
    for source in ("n1", "core", "s2"):
        targets = [a for n, addresses in hosts.items() if n != source for a in addresses]
        assert len(targets) >= 16
        done = testbed("exec", name, source, "--", "python3", "-c", REACHED, *targets)
        assert (done.returncode, done.stdout) == (0, ""), f"{source} does not reach {done.stdout}{done.stderr}"


def test_scripts_get_json_from_every_verb_that_tells_something(name: str, tmp_path: Path) -> None:
    up = json.loads(testbed("up", TWO, "--name", name, "--json").stdout)
    assert up["result"] == "up"
    assert up["nodes"]["client"] == [["eth0", "10.0.1.1/30 2001:db8:0:1::1/64"]]
    assert json.loads(testbed("up", TWO, "--name", name, "--json").stdout)["result"] == "unchanged"
    assert name in [s["name"] for s in json.loads(testbed("status", "--json").stdout)]
    seen = {i["name"]: i for i in json.loads(testbed("status", name, "client", "--json").stdout)}
    assert seen["eth0"]["state"] == "up"
    assert seen["eth0"]["qdisc"] == ["tbf"]
    assert "10.0.1.1/30" in seen["eth0"]["addresses"]
    assert json.loads(testbed("check", TWO, "--json").stdout)["problems"] == []
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: bad\nnodes: {a: {roter: {}}}\n")
    done = testbed("check", str(bad), "--json")
    assert done.returncode == 2
    (problem,) = json.loads(done.stdout)["problems"]
    assert (problem["line"], problem["column"], problem["hint"]) == (2, 13, "did you mean 'router'?")
    steps = json.loads(testbed("plan", TWO, "--json").stdout)["steps"]
    assert steps[0] == {"phase": "up", "kind": "Configure", "text": "[-] ip netns add client"}
    assert json.loads(testbed("schema").stdout)["title"] == "testbed topology"


def test_plan_prints_what_up_performs(name: str) -> None:
    planned = testbed("plan", TWO).stdout.partition("\n# run")[0].splitlines()
    dry = [r.removeprefix("+ ") for r in testbed("up", TWO, "--name", name, "--dry-run").stdout.splitlines()]
    assert [r for r in planned if r] == dry
    assert testbed("status", name).returncode == 3, "a dry run makes nothing"


def test_names_of_labs_and_nodes_are_completed(name: str) -> None:
    assert testbed("up", TWO, "--name", name).returncode == 0
    program = str(Path(sys.executable).with_name("testbed"))

    def completed(words: str, at: int) -> list[str]:
        env = {**os.environ, "_TESTBED_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        return subprocess.run((program,), env=env, capture_output=True, text=True, check=False).stdout.split()

    assert completed(f"testbed down {name[:6]}", 2) == [name]
    assert completed(f"testbed exec {name} cl", 3) == ["client"]


def test_on_a_terminal_progress_is_drawn_and_elsewhere_it_is_plain_lines(name: str, tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("name: quick\nnodes: {a: {}}\nworkloads: {one: {command: {node: a, argv: ['true']}}}\n")
    words = ("run", str(file), "--name", name, "--results", str(tmp_path / "r"))
    plain = testbed(*words)
    assert plain.returncode == 0
    assert "[a]& true > a/one.command.out  @0s within 60s" in plain.stderr
    assert "\x1b" not in plain.stderr + plain.stdout
    status, drawn = on_a_terminal(*words)
    assert status == 0
    assert b"\x1b[" in drawn


def on_a_terminal(*words: str) -> tuple[int, bytes]:
    """Run the command line on a terminal of its own; its exit status and all that it wrote there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen((sys.executable, "-m", "testbed", *words), stdout=theirs, stderr=theirs)
    os.close(theirs)
    drawn = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # EIO: the other side closed
            break
        if not part:
            break
        drawn += part
    os.close(ours)
    return process.wait(), drawn


def test_a_command_can_not_hide_what_it_is_from_who_watches_it_run(name: str, tmp_path: Path) -> None:
    file = tmp_path / "hiding.yaml"
    file.write_text(r"""
name: hiding
nodes:
  a: {commands: [[sh, -c, "true #\x1b[1A\r\x1b[J\x1b]0;harmless\x07\n# [-] sound"]]}
workloads:
  w:
    command:
      node: a
      argv: [sh, -c, "printf '\\033]0;x\\007 [bold]said[/bold] :smile: \\342\\200\\256\\n' >&2; exit 5 #\x1b[8m"]
""")
    results = tmp_path / "r"
    status, drawn = on_a_terminal("run", str(file), "--name", name, "--results", str(results))
    assert status == 3
    assert b"\x1b]" not in drawn, "no title is set"
    assert b"\x1b[8m" not in drawn, "nothing is hidden"
    assert rb"\x1b]0;x\x07 [bold]said[/bold] :smile: \u202e" in drawn
    done = testbed("report", str(results / "hiding/latest"))
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()
    for kept in ("plan.txt", "commands.log"):
        text = (results / "hiding/latest" / kept).read_text()
        assert text.replace("\n", "").isprintable()
        assert r"sh -c $'true #\x1b[1A\r\x1b[J\x1b]0;harmless\x07\n# [-] sound'" in text
    refused = tmp_path / "refused.yaml"
    refused.write_text(file.read_text().replace("true #", "printf '\\\\033[8m\\\\n'; false #"))
    done = testbed("up", str(refused), "--name", name)
    assert done.returncode == 3
    assert done.stderr.replace("\n", "").isprintable()
    assert r"run-0.log: \x1b[8m" in done.stderr


def test_the_exit_status_tells_what_kind_of_failure_it_was(tmp_path: Path, name: str) -> None:
    assert testbed("check", str(tmp_path / "none.yaml")).returncode == 2
    assert testbed("down", f"{name}-never").returncode == 3
    assert testbed("exec", f"{name}-never", "a", "true").returncode == 125
    assert testbed("down").returncode == 2
    assert testbed("nonsense").returncode == 2
    refused = tmp_path / "t.yaml"
    refused.write_text("name: refused\nnodes: {a: {commands: [[sh, -c, 'echo no >&2; exit 9']]}}\n")
    done = testbed("up", str(refused), "--name", name)
    assert done.returncode == 3
    assert "[a] sh -c 'echo no >&2; exit 9': it ended with status 9" in done.stderr
    assert "run-0.log: no" in done.stderr
    assert name not in testbed("status").stdout, "and nothing is left"


def test_a_kernel_refusal_names_node_command_and_reason(tmp_path: Path, name: str) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("name: refused\nnodes: {a: {sysctl: {net.ipv4.no_such_thing: 1}}}\n")
    done = testbed("up", str(file), "--name", name)
    assert done.returncode == 3
    assert "[a] sysctl -w net.ipv4.no_such_thing=1: this kernel has no such parameter" in done.stderr


def test_an_interruption_that_a_library_takes_for_an_error_of_its_own_is_one_all_the_same() -> None:
    code = """
import os, signal
from testbed.cli import process
def verb():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except SystemExit as e:
        raise ValueError("wrapped") from e
process.perform(verb)
"""
    done = subprocess.run((sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "testbed: interrupted (SIGINT)\n")


def test_the_time_of_up_counts_what_the_asker_had_taken_before(name: str) -> None:
    done = testbed("up", TWO, "--name", name, "--json", env={**os.environ, "TESTBED_SPENT": "700"})
    assert done.returncode == 0, done.stderr
    assert 700 < json.loads(done.stdout)["seconds"] < 1000


IN_BYTES = (
    *("--set", "links.cable.rate=1mbps", "--set", "checks=[]"),
    *("--set", "workloads={rtt: {ping: {from: client, to: server, seconds: 1}}}"),
)


def test_up_and_run_warn_and_the_results_and_the_report_say_so(tmp_path: Path, name: str) -> None:
    up = testbed("up", TWO, "--name", name, *IN_BYTES)
    assert up.returncode == 0, up.stderr
    assert up.stderr.count(" [rate-in-bytes]\n") == 1
    done = testbed("run", TWO, "--name", f"{name}r", *IN_BYTES, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "two-hosts/latest"
    [warned] = json.loads((folder / "manifest.json").read_text())["warnings"]
    assert (warned["name"], warned["figures"]) == ("rate-in-bytes", "every rate that this one limits or sends")
    seen = json.loads((folder / "verdict.json").read_text())["validity"]
    assert any(d["what"] == warned["figures"] and warned["message"] in d["seen"] for d in seen)


def test_a_warning_that_a_file_silences_is_not_said_anywhere(tmp_path: Path, name: str) -> None:
    silent = ("--set", "silence={rate-in-bytes: the disk's data sheet has bytes}")
    done = testbed("run", TWO, "--name", name, *IN_BYTES, *silent, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "[rate-in-bytes]" not in done.stderr + (tmp_path / "two-hosts/latest/verdict.json").read_text()
