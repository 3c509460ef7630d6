"""The one direction of imports, and the few modules that may touch what must stay in one place (docs/design)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "testbed"
TREES = {
    ".".join(f.relative_to(PACKAGE).with_suffix("").parts): ast.parse(f.read_text()) for f in PACKAGE.rglob("*.py")
}
# What makes a plan of a file, lowest first: a module imports of its own layer and of those before it.
PURE = (
    (
        *("errors", "plain", "words", "wire", "features", "spec", "units", "files"),
        *("multicast.records", "recorded", "records"),
    ),
    ("steps", "document", "drivers", "travel"),
    ("explain", "nodes", "workloads"),
    ("topology",),
    ("experiment", "addressing", "routing", "tunnels"),
    ("trees", "naming"),
    ("groups",),
    ("consistency",),
    ("plan",),
    ("schedule",),
)
# A file is an experiment, a topology is checked as a whole: both are above the models, whose functions call them.
LATE = {("topology", "experiment"), ("topology", "consistency")}
# What performs steps knows nothing of where they come from.
LINUX = {
    *("bounds", "cgroups", "linux", "netlink", "lab", "forked", "probes", "timeline", "sampler", "holder"),
    *("sandbox", "control", "messages", "answers", "asking", "listening", "names", "enter"),
    *("mptcp", "multicast", "wifi"),
}
# What reads results is no part of a lab, whatever folder it is in.
READS = {"wifi.metrics"}
NO_LINUX = {"subprocess", "socket", "select", "selectors", "signal", "ctypes", "time", "threading", "pyroute2"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, ours without `testbed.`; also each name of `from testbed import x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("testbed.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "testbed":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.removeprefix("testbed.")


def layer(module: str) -> int | None:
    return next((n for n, names in enumerate(PURE) if {module, module.partition(".")[0]} & set(names)), None)


@pytest.mark.parametrize("module", sorted(m for m in TREES if layer(m) is not None))
def test_imports_go_one_way(module: str) -> None:
    mine = layer(module)
    ours = [m for m in imported(TREES[module]) if m in TREES or layer(m) is not None]
    wrong = [m for m in ours if (module, m) not in LATE and (layer(m) is None or (layer(m) or 0) > (mine or 0))]
    assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("module", sorted(m for m in TREES if layer(m) is not None))
def test_planning_asks_nothing_of_the_machine(module: str) -> None:
    # Drivers take the numbers of address families from `socket`, and only those.
    allowed = {"socket"} if module.startswith("drivers.") else set()
    assert not (set(imported(TREES[module])) & NO_LINUX) - allowed
    calls = [
        n.attr for n in ast.walk(TREES[module]) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "socket"
    ]
    assert set(calls) <= {"AF_INET", "AF_INET6", "AF_UNSPEC", "inet_pton"}


@pytest.mark.parametrize("module", sorted(m for m in TREES if m.partition(".")[0] in LINUX and m not in READS))
def test_what_performs_steps_knows_no_topology(module: str) -> None:
    above = {m for m in imported(TREES[module]) if (layer(m) or 0) >= 2}
    assert not above


def test_planning_does_not_wait_for_libraries_of_other_verbs() -> None:
    code = (
        "import sys; from pathlib import Path; from testbed.plan import plan; from testbed.topology import load\n"
        "plan(load(Path('topologies/tree.yaml'))); print(sys.modules.keys() & {'rich', 'pyroute2', 'typer'})"
    )
    done = subprocess.run((sys.executable, "-c", code), cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("words", "waits"),
    [
        ("exec lab a ls", "set()"),
        ("exec lab a -- ls -l", "set()"),
        ("exec lab a", "{'typer'}"),  # says what is missing
        ("exec lab a --", "{'typer'}"),
        ("exec --help", "{'typer'}"),
        ("exec lab --help ls", "{'typer'}"),
        ("status", "{'typer'}"),
    ],
)
def test_a_command_in_a_node_does_not_wait_for_the_parser_of_the_other_verbs(words: str, waits: str) -> None:
    code = f"import sys, testbed.program as p; p._verb({words.split()}); print(sys.modules.keys() & {{'typer'}})"
    done = subprocess.run((sys.executable, "-c", code), cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout == f"{waits}\n"


def test_a_command_in_a_node_waits_for_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, testbed.program as p; p._verb(['exec', 'lab', 'a', 'ls'])\n"
        "print({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'__main__'})"
    )
    done = subprocess.run(
        (sys.executable, "-S", "-c", code), cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'testbed'}\n"


def users(*words: str) -> set[str]:
    """The modules that import, or name with a dot, one of these."""
    found = {m for m, tree in TREES.items() if set(words) & set(imported(tree))}
    return found | {
        m
        for m, tree in TREES.items()
        if any(isinstance(n, ast.Attribute) and ast.unparse(n) in words for n in ast.walk(tree))
    }


def test_processes_are_started_in_few_places() -> None:
    assert users("os.fork", "os.execvp", "os.posix_spawn", "os.posix_spawnp", "subprocess.run", "subprocess.Popen") == {
        "lab",  # the lab's own
        "forked",  # the same, of our own code
        "sandbox",  # the holder
        "enter",  # a command in a node
        "machines.programs",  # what programs say of themselves
        "machines.scratch",  # where a kernel is probed
        "machines.building",  # the image
        "machines.confined",  # QEMU, without privileges
        "machines.keeper",  # ssh
        "machines.lent",  # a child that tries what QEMU is to do
        "machines.kvm",  # QEMU, to see whether KVM serves
        "machines.microvm",  # ssh to a guest
        "machines.remote",  # ssh to a machine
        "machines.relayed",  # what is said there, made visible
        "pytest_plugin",  # the command line
        "machines.request",  # the command line that another machine asked for
    }


def test_two_modules_open_netlink_sockets() -> None:
    assert users("socket.AF_NETLINK") == {"netlink", "names"}


def test_one_module_reads_yaml() -> None:
    assert users("yaml") == {"document"}


def test_two_modules_print_and_one_is_what_they_print_on() -> None:
    prints = {
        m
        for m, tree in TREES.items()
        if any(isinstance(n, ast.Call) and ast.unparse(n.func) == "print" for n in ast.walk(tree))
    }
    assert prints | users("sys.stdout", "sys.stderr") == {"cli", "program", "screen"}
