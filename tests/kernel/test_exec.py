"""Commands in a node: as on any machine, with that node's network and nothing of the host's."""

from __future__ import annotations

import os
import pty
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import load, up
from testbed.errors import LabError
from testbed.lab import control
from testbed.lab.control import RunningLab
from tests.conftest import ROOT, testbed

pytestmark = pytest.mark.kernel

TWO = ROOT / "topologies/two-hosts.yaml"
CLI = (sys.executable, "-m", "testbed")


@pytest.fixture(scope="module")
def lab() -> Iterator[RunningLab]:
    with up(load(TWO), f"exec-{os.getpid()}") as found:
        yield found


def said(lab: RunningLab, *argv: str, node: str = "client") -> str:
    done = testbed("exec", lab.name, node, "--", *argv)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("status", [0, 1, 7, 127, 255])
def test_the_exit_status_is_that_of_the_command(lab: RunningLab, status: int) -> None:
    assert testbed("exec", lab.name, "client", "--", "sh", "-c", f"exit {status}").returncode == status


def test_the_exit_status_comes_also_to_a_caller_who_ignores_the_end_of_children(lab: RunningLab, name: str) -> None:
    def deaf(*words: str) -> subprocess.CompletedProcess[str]:
        shell = ("bash", "-c", "trap '' CHLD; exec \"$@\"", "bash", *CLI)
        return subprocess.run((*shell, *words), capture_output=True, text=True, timeout=60, check=False)

    done = deaf("exec", lab.name, "client", "--", "sh", "-c", "exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    assert deaf("doctor", "--fresh", "--machine", "here").returncode == 0
    assert deaf("up", str(TWO), "--name", name).returncode == 0
    assert deaf("down", name).returncode == 0


@pytest.mark.parametrize("umask", [0o077, 0])
def test_whatever_the_umask_every_user_in_a_lab_reads_its_hosts_and_root_alone_writes_them(
    name: str, umask: int
) -> None:
    done = testbed("up", str(TWO), "--name", name, umask=umask)
    assert done.returncode == 0, done.stderr
    files = ("/run/testbed", "/run/testbed/tmp", "/run/netns", "/etc/hosts", "/etc/resolv.conf")
    said = testbed("exec", name, "client", "--", "stat", "-c", "%a", *files).stdout.split()
    assert said == ["755", "755", "755", "644", "644"]


def test_a_command_has_the_umask_of_its_caller(lab: RunningLab) -> None:
    assert testbed("exec", lab.name, "client", "--", "sh", "-c", "umask", umask=0o077).stdout == "0077\n"


def test_a_command_that_a_signal_ended_has_128_and_its_number(lab: RunningLab) -> None:
    assert testbed("exec", lab.name, "client", "--", "sh", "-c", "kill -KILL $$").returncode == 128 + 9


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("no\x1b[2J\u202e", r"testbed: no\x1b[2J\u202e: No such file or directory"),
        (b"no\xff", r"testbed: no\xff: No such file or directory"),
        ("", "testbed: : the first word of a command is the program, and it is empty"),
    ],
)
def test_a_name_that_no_program_has_is_told_visibly_with_127(lab: RunningLab, program: str | bytes, said: str) -> None:
    done = testbed("exec", lab.name, "client", "--", os.fsdecode(program))
    assert (done.returncode, done.stderr.strip()) == (127, said)


def test_a_command_that_is_not_there_has_127_and_one_that_can_not_run_126(lab: RunningLab) -> None:
    done = testbed("exec", lab.name, "client", "--", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == "testbed: no-such-command: No such file or directory\n"
    assert testbed("exec", lab.name, "client", "--", "/etc/passwd").returncode == 126


def test_input_and_both_outputs_pass_through_byte_by_byte(lab: RunningLab) -> None:
    data = bytes(range(256)) * 4096
    words = (*CLI, "exec", lab.name, "client", "--", "sh", "-c", "cat; echo told >&2")
    done = subprocess.run(words, input=data, capture_output=True, check=True)
    assert done.stdout == data
    assert done.stderr == b"told\n"


def test_options_after_the_node_belong_to_the_command(lab: RunningLab) -> None:
    assert said(lab, "echo", "--help", "-n", "--", "x") == "--help -n -- x\n"
    done = testbed("exec", lab.name, "client", "echo", "-n", "--json")
    assert done.stdout == "--json"


def test_a_reader_that_goes_away_ends_the_command_quietly(lab: RunningLab) -> None:
    words = " ".join((*CLI, "exec", lab.name, "client", "--", "yes"))
    done = subprocess.run(("sh", "-c", f"{words} | head -1"), capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == ("y\n", "")


def test_sigterm_to_the_command_line_reaches_the_command(lab: RunningLab) -> None:
    script = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    words = (*CLI, "exec", lab.name, "client", "--", "sh", "-c", script)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "told\n"
        assert process.wait() == 9


def test_kill_9_of_the_command_line_ends_the_command(lab: RunningLab) -> None:
    words = (*CLI, "exec", lab.name, "client", "--", "sh", "-c", "echo ready; exec sleep 1234")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert process.stdout.read() == "", "the other end is closed, too"
    assert "sleep 1234" not in lab.exec("", ("ps", "-e", "-o", "args=")).stdout


START = "setsid sleep {0} & (nohup sleep {0} > /dev/null 2>&1 &); unshare -m sleep {0} & unshare -u sleep {0} & "
ENDS = {
    "by itself": ("exit 5", None, 5),
    "by SIGTERM": ("echo ready; exec sleep 1000", signal.SIGTERM, 128 + 15),
    "by SIGHUP": ("echo ready; exec sleep 1000", signal.SIGHUP, 128 + 1),
    "by SIGKILL": ("echo ready; exec sleep 1000", signal.SIGKILL, -9),
}


@pytest.mark.parametrize(("then", "number", "status"), ENDS.values(), ids=ENDS)
def test_everything_that_a_command_started_ends_with_the_command_line(
    lab: RunningLab, then: str, number: signal.Signals | None, status: int
) -> None:
    mine = str(random.randrange(10**5, 10**6))

    def left() -> int:
        return lab.exec("", ("ps", "-e", "-o", "args=")).stdout.splitlines().count(f"sleep {mine}")

    wait = f"until [ $(ps -e -o args= | grep -cx 'sleep {mine}') = 4 ]; do sleep 0.01; done; "
    words = (*CLI, "exec", lab.name, "client", "--", "sh", "-c", START.format(mine) + wait + then)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if number is not None:
            assert process.stdout.readline() == "ready\n"
            assert left() == 4
            process.send_signal(number)
        assert process.wait(20) == status
        if number != signal.SIGKILL:
            assert left() == 0, "they are gone when it returns"
        deadline = time.monotonic() + 5
        while left():
            assert time.monotonic() < deadline
    assert lab.exec("client", ("true",)).returncode == 0


def test_commands_beside_it_are_not_touched(lab: RunningLab) -> None:
    words = (*CLI, "exec", lab.name, "client", "--", "sh", "-c", "echo ready; read word; echo got $word")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(5):
            assert testbed("exec", lab.name, "client", "sh", "-c", "sleep 1000 &").returncode == 0
        assert process.communicate("something\n")[0] == "got something\n"


def test_a_command_ends_with_the_program_that_asked_for_it_and_so_do_its_daemons(lab: RunningLab) -> None:
    mine = str(random.randrange(10**5, 10**6))
    asking = (
        "import sys; from testbed.lab import control\n"
        "script = 'setsid sleep $0 & (sleep $0 &); touch /run/testbed/on-$0; wait'\n"
        "control.find(sys.argv[1]).exec('client', ['sh', '-c', script, sys.argv[2]])"
    )
    process = subprocess.Popen((sys.executable, "-c", asking, lab.name, mine))
    while lab.exec("", ("test", "-e", f"/run/testbed/on-{mine}")).returncode:
        assert process.poll() is None
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while f"sleep {mine}" in lab.exec("", ("ps", "-e", "-o", "args=")).stdout:
        assert time.monotonic() < deadline


def test_the_folder_is_kept_and_files_are_those_of_the_host(lab: RunningLab, tmp_path: Path) -> None:
    done = testbed("exec", lab.name, "client", "--", "sh", "-c", "pwd; echo x > here", cwd=tmp_path)
    assert done.stdout == f"{tmp_path}\n"
    assert (tmp_path / "here").read_text() == "x\n"
    (tmp_path / "gone").mkdir()
    script = f"cd {tmp_path}/gone; rmdir ../gone; exec {' '.join(CLI)} exec {lab.name} client -- pwd"
    done = subprocess.run(("sh", "-c", script), capture_output=True, text=True, check=True)
    assert done.stdout == "/\n", "a folder that is gone is no fault"


def test_a_node_has_its_own_name_interfaces_and_processes(lab: RunningLab) -> None:
    for node in ("client", "server"):
        script = "hostname; echo /sys/class/net/*; ip -o link"
        name, devices, *rows = said(lab, "sh", "-c", script, node=node).splitlines()
        assert name == node
        assert devices == "/sys/class/net/eth0 /sys/class/net/lo", "and none of the host's"
        assert [row.split(": ")[1].partition("@")[0] for row in rows] == ["lo", "eth0"]
    deadline = time.monotonic() + 10
    while len(processes := said(lab, "ps", "-e", "-o", "pid=,args=").splitlines()) != 2:  # PID 1 and ps
        assert time.monotonic() < deadline, processes  # commands of the tests before are collected when PID 1 wakes


def test_names_of_nodes_resolve_and_others_fail_at_once(lab: RunningLab) -> None:
    assert said(lab, "getent", "hosts", "server").split()[-1] == "server"
    assert said(lab, "getent", "ahostsv4", "server").split()[0] == "10.0.1.2"
    assert said(lab, "ping", "-c1", "-W2", "server")
    began = time.monotonic()
    assert testbed("exec", lab.name, "client", "--", "getent", "hosts", "example.org").returncode == 2
    assert time.monotonic() - began < 3


def test_ip_netns_knows_the_nodes(lab: RunningLab) -> None:
    assert {row.split()[0] for row in said(lab, "ip", "netns").splitlines() if row} == {"client", "server"}
    assert "10.0.1.2/30" in said(lab, "ip", "-n", "server", "-4", "addr", "show", "dev", "eth0")
    assert not {"client", "server"} & {p.name for p in Path("/run/netns").glob("*")}, "which the host does not"


def test_a_node_or_a_lab_that_is_not_there_is_named(lab: RunningLab) -> None:
    done = testbed("exec", lab.name, "clientt", "--", "true")
    assert done.returncode == 125
    assert f"lab {lab.name}: there is no node clientt (nodes: client, server)" in done.stderr
    done = testbed("exec", f"{lab.name}-never", "client", "--", "true")
    assert done.returncode == 125
    assert "no such lab is up" in done.stderr


class Terminal:
    """A person at a terminal, who types and reads."""

    def __init__(self, *words: str) -> None:
        self.seen = ""
        self.child, self.fd = pty.fork()
        if self.child == 0:
            os.environ["SHELL"] = "/bin/bash"
            os.execvp(words[0], words)

    def until(self, text: str) -> str:
        """Read until a text comes, and return what came before it."""
        deadline = time.monotonic() + 20
        while text not in self.seen:
            assert select.select([self.fd], [], [], deadline - time.monotonic())[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode()
        before, _, self.seen = self.seen.partition(text)
        return before

    def types(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def ends(self) -> int:
        """Return the exit status, when all that was written has been read."""
        while select.select([self.fd], [], [], 20)[0]:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:  # EIO: nobody has the terminal open any more
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def test_a_shell_has_a_prompt_job_control_and_its_own_exit_status(lab: RunningLab) -> None:
    prompt = f"client@{lab.name}:"
    person = Terminal(*CLI, "shell", lab.name, "client")
    assert "job control" not in person.until(prompt), "no complaint that there is none"
    person.types("hostname; ls /sys/class/net | tr '\\n' ' '\n")
    person.until("client\r\n")
    assert "eth0 lo" in person.until(prompt)
    person.types("sleep 1000\n")
    person.until("sleep 1000\r\n")
    while "sleep 1000" not in lab.exec("", ("ps", "-e", "-o", "args=")).stdout:
        pass
    person.types("\x1a")  # Ctrl-Z
    person.until("Stopped")
    person.until(prompt)
    person.types("jobs\n")
    assert "sleep 1000" in person.until(prompt)
    person.types("fg\n")
    person.until("sleep 1000\r\n")
    while " S" not in lab.exec("", ("sh", "-c", "ps -o state=,args= -C sleep | sed 's/^/ /'")).stdout:
        pass
    person.types("\x03")  # Ctrl-C
    person.until(prompt)
    person.types("echo still $((40 + 2))\n")
    person.until("still 42\r\n")
    person.types("exit 7\n")
    assert person.ends() == 7


def test_a_script_goes_on_reading_its_terminal_after_a_shell_in_a_node(lab: RunningLab) -> None:
    script = f"{' '.join(CLI)} shell {lab.name} client; echo status $?; read word; echo got $word"
    person = Terminal("sh", "-c", script)
    person.until(f"client@{lab.name}:")
    person.types("exit 3\n")
    person.until("status 3\r\n")
    person.types("something\n")
    person.until("got something\r\n")
    assert person.ends() == 0


def test_ctrl_c_ends_a_command_and_not_the_script_around_it(lab: RunningLab) -> None:
    script = (
        f"trap : INT; {' '.join(CLI)} exec {lab.name} client -- sh -c 'echo ready; exec sleep 1000'; echo status $?"
    )
    person = Terminal("sh", "-c", script)
    person.until("ready\r\n")
    person.types("\x03")
    person.until("status 130\r\n")
    assert person.ends() == 0


def test_the_library_runs_commands_with_input_environment_and_folder(lab: RunningLab, tmp_path: Path) -> None:
    script = "cat; pwd; echo $WORD; echo told >&2; exit 4"
    env = {"WORD": "given", "PATH": os.environ["PATH"]}
    done = lab.exec("client", ("sh", "-c", script), input=b"in\n", cwd=str(tmp_path), env=env)
    assert (done.returncode, done.stdout, done.stderr) == (4, f"in\n{tmp_path}\ngiven\n", "told\n")
    assert lab.exec("client", ("pwd",)).stdout == f"{Path.cwd()}\n"
    assert len(lab.exec("client", ("cat",), input=b"x" * 10**7).stdout) == 10**7
    assert "10.0.1.1/30" in lab.exec("client", ("ip", "addr")).stdout
    assert "10.0.1.2/30" in lab.exec("server", ("ip", "addr")).stdout


def test_the_library_names_what_can_not_be_run(lab: RunningLab, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"\[client\] no-such-command \(in .*\): No such file or directory"):
        lab.exec("client", ("no-such-command",))
    with pytest.raises(LabError, match="there is no node nobody"):
        lab.exec("nobody", ("true",))
    with pytest.raises(LabError, match=f"in {tmp_path}/nowhere"):
        lab.exec("client", ("true",), cwd=f"{tmp_path}/nowhere")


def test_a_command_has_three_streams_and_nothing_else_open(lab: RunningLab) -> None:
    assert lab.exec("client", ("ls", "/proc/self/fd")).stdout.split() == ["0", "1", "2", "3"], "3 is the folder"
    words = (*CLI, "exec", lab.name, "client", "--", "ls", "/proc/self/fd")
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, close_fds=True, check=True)
    assert done.stdout.split() == ["0", "1", "2", "3"]


def test_commands_of_many_threads_and_programs_run_at_the_same_time(lab: RunningLab) -> None:
    statuses: dict[int, int] = {}
    meet = "touch /run/testbed/here-$0; until [ $(ls /run/testbed | grep -c here-) = 12 ]; do sleep 0.01; done; exit $0"

    def ask(n: int) -> None:
        one = lab if n % 2 else control.find(lab.name)
        statuses[n] = one.exec("client" if n % 3 else "server", ("timeout", "20", "sh", "-c", meet, str(n))).returncode

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == {n: n for n in range(12)}, "each waited for all others, and each has its own answer"


def test_sigint_to_a_program_in_the_background_is_its_own_affair(lab: RunningLab) -> None:
    with subprocess.Popen((*CLI, "exec", lab.name, "client", "--", "sleep", "4321"), start_new_session=True) as process:
        deadline = time.monotonic() + 10
        while "sleep 4321" not in lab.exec("", ("ps", "-e", "-o", "args=")).stdout.splitlines():
            assert time.monotonic() < deadline
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait() == 130
