"""The one direction of imports, and the few modules that may touch what must stay in one place (docs/design)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest

from testbed.nodes.node import ROLES

pytestmark = pytest.mark.xdist_group("layers")  # one worker parses the modules
PACKAGE = Path(__file__).parent.parent / "testbed"
FILES = {".".join(f.relative_to(PACKAGE).with_suffix("").parts): f for f in PACKAGE.rglob("*.py")}


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


class Trees(Mapping[str, ast.Module]):
    """The syntax tree of each module, parsed when it is asked for: every worker of a suite imports this file."""

    files: ClassVar = {m.removesuffix(".__init__"): f for m, f in FILES.items()}

    def __getitem__(self, module: str) -> ast.Module:
        return parsed(self.files[module])

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


TREES = Trees()
# Every module of the tree, lowest floor first: a module imports from its own floor and from those below it.
FLOORS: tuple[dict[str, str], ...] = (
    {"": "errors plain words features spec units"},
    {
        "linux": "calls cgroups faults host inet_diag kernel_log mptcp_info netlink nf_tables signals tcp_info uapi "
        "unix unix_diag wire"
    },
    {"": "steps"},
    {
        "drivers": "amt bound channels facts hostapd hwsim joins link membership mptcp mptcp_pm mptcpize nftables "
        "nl80211 route smcroute sysctl tc wpa_ctrl wpa_supplicant"
    },
    {
        "programs": "",
        "programs.mptcp": "admission asking door events listing log main policies recovery state tell",
        "programs.multicast": "packets receiver sender",
        "programs.transfer": "asked flow main sockets",
        "programs.replay": "main",
        "programs.sampler": "air counters main neighbours subflows taps wlans",
        "nodes": "access_point amt_gateway amt_relay bridge endpoint middlebox mptcp node one_path path_manager place "
        "preflight role router service station",
    },
    {
        "metrics": "bounds connections flows managed measured metric nodes owners paths reception recorded records "
        "said table wifi"
    },
    {"workloads": "command iperf3 iperf3_report multicast ping place transfer transfer_report"},
    {
        "language": "described document effective experiment explain files moments overlay parsing schema sound syntax "
        "topology traces writing"
    },
    {
        "plan": "addresses assemble endpoints events interfaces lab links multipath network prefixes routes "
        "run speed tables traces trees tunnels"
    },
    {
        "rules": "addresses amt captures checks events fault flows likeness links misread multicast names nodes "
        "requires segments warnings whole workloads"
    },
    {"": "loading"},
    {"": "results"},
    {
        "lab": "answers asked asker asking bounds changes configure control drift ending enter forked furniture "
        "holder jobs listening look messages namespace perform probes processes reach sandbox sources state stopping "
        "timeline travel verbs waits",
        "report": "doubts drift effects fallback judge one_path match matching report together",
    },
    {
        "machines": "case cases choose collected country elsewhere errands home lab_guest trusted",
        "machines.probe": "here kernel programs radios regulatory remembered scratch unheard",
        "machines.guest": "asking booted building command confined console image keeper kvm lent microvm own_kernel "
        "qemu recipe "
        "ready running saved shared shell staging starting",
        "machines.ssh": "known relayed remote request",
    },
    {"runs": "again bring_up case cases invocation older written"},
    {
        "cli": "app called declared examples files init inputs labs mptcp options places present process program "
        "progress requests runs screen up verbs"
    },
    {"": "__main__ pytest_plugin"},
)
# The doors, which open late so that `testbed exec` does not wait for what is behind them.
LATE = {("__init__", "loading"), ("__init__", "runs.bring_up")}
# Planning asks nothing of the machine; and what performs steps knows nothing of where they come from.
PURE = {"drivers", "nodes", "metrics", "workloads", "language", "plan", "rules"}
PURE_MODULES = {
    "errors",
    "plain",
    "words",
    "features",
    "spec",
    "units",
    "steps",
    "linux.uapi",
    "linux.wire",
    "lab.travel",
}
NO_LINUX = {"subprocess", "socket", "select", "selectors", "signal", "ctypes", "time", "threading", "pyroute2"}


def named() -> dict[str, int]:
    """Every module of the table with its floor; a room is the module that its __init__ makes."""
    found = {"__init__": len(FLOORS)}
    for floor, rooms in enumerate(FLOORS):
        for room, modules in rooms.items():
            for package in (room, room.partition(".")[0]) if room else ():
                found.setdefault(package, floor)
            found |= {f"{room}.{m}".removeprefix("."): floor for m in modules.split()}
    return found


FLOOR = named()


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, ours without `testbed.`; also each name of `from testbed.room import x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("testbed.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "testbed":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            home = node.module.removeprefix("testbed.")
            inside = [f"{home}.{alias.name}" for alias in node.names if f"{home}.{alias.name}" in TREES]
            yield from inside or [home]


def test_the_table_names_every_module_and_no_other() -> None:
    assert set(TREES) == set(FLOOR)


def test_each_room_says_what_it_is() -> None:
    assert not [m for m, f in FILES.items() if m.endswith("__init__") and not ast.get_docstring(parsed(f))]


@pytest.mark.parametrize("module", sorted(TREES))
def test_imports_go_one_way(module: str) -> None:
    ours = {m for m in imported(TREES[module]) if m in FLOOR}
    wrong = {m for m in ours if FLOOR[m] > FLOOR[module] and (module, m) not in LATE}
    assert not wrong, f"{module} imports {wrong}"


def test_nothing_is_excused_that_is_not_there() -> None:
    there = {(m, other) for m, tree in TREES.items() for other in imported(tree)}
    assert there >= LATE


@pytest.mark.parametrize("module", sorted(m for m in TREES if m.partition(".")[0] in PURE or m in PURE_MODULES))
def test_planning_asks_nothing_of_the_machine(module: str) -> None:
    # Drivers take the numbers of address families from `socket`, and only those.
    allowed = {"socket"} if module.startswith("drivers.") else set()
    assert not (set(imported(TREES[module])) & NO_LINUX) - allowed
    calls = [
        n.attr for n in ast.walk(TREES[module]) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "socket"
    ]
    assert set(calls) <= {"AF_INET", "AF_INET6", "AF_UNSPEC", "inet_pton"}


@pytest.mark.parametrize("module", sorted(m for m in TREES if m.partition(".")[0] in {"linux", "lab", "programs"}))
def test_what_performs_steps_knows_no_topology(module: str) -> None:
    above = {"nodes", "workloads", "language", "plan", "rules"}
    assert not {m for m in imported(TREES[module]) if m.partition(".")[0] in above}


def test_no_module_replaces_a_public_function_of_the_package() -> None:
    names = sorted(f"testbed.{m}".removesuffix(".__init__") for m in TREES if m not in ("__init__", "__main__"))
    code = (
        f"import importlib, testbed\nfor name in {names}: importlib.import_module(name)\n"
        "print([testbed.load('topologies/two-hosts.yaml').name for _ in range(2)])"
    )
    done = subprocess.run((sys.executable, "-c", code), cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "['two-hosts', 'two-hosts']\n"


def test_planning_does_not_wait_for_libraries_of_other_verbs() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from testbed.plan.lab import plan; from testbed.loading import load\n"
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
        ("status", "set()"),
        ("up topologies/tree.yaml --name x --set links.0.delay=1ms", "set()"),
        ("machine ls --json", "set()"),
        ("machine", "{'typer'}"),
        ("up --help", "{'typer'}"),
        ("up topologies/tree.yaml --cpus 65", "{'typer'}"),
    ],
)
def test_a_command_line_in_plain_form_does_not_wait_for_a_parser(words: str, waits: str) -> None:
    code = f"import sys, testbed.cli.program as p; p._verb({words.split()}); print(sys.modules.keys() & {{'typer'}})"
    done = subprocess.run((sys.executable, "-c", code), cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout == f"{waits}\n"


def test_a_command_in_a_node_waits_for_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, testbed.cli.program as p; p._verb(['exec', 'lab', 'a', 'ls'])\n"
        "print({m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'__main__'})"
    )
    done = subprocess.run(
        (sys.executable, "-S", "-c", code), cwd=PACKAGE.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'testbed'}\n"


# Where a role is named outside of its own file, and why no general question takes its place. Nothing is added here.
NAMED = {
    ("plan.tunnels", "amt_gateway"): "an AMT tunnel joins two nodes, and a role sees one",
    ("plan.tunnels", "amt_relay"): "the same",
    ("rules.amt", "amt_gateway"): "what fits between the two ends of a tunnel",
    ("rules.amt", "amt_relay"): "the same",
    ("rules.amt", "bridge"): "the same: a tunnel is not a port of the bridge that carries it",
    ("rules.amt", "router"): "the same: a relay is a router",
    ("plan.endpoints", "mptcp"): "the same",
    ("rules.events", "mptcp"): "the same",
    ("plan.events", "mptcp"): "the key `mptcp` of an event is a command to that role",
    ("report.effects", "mptcp"): "the same",
    ("plan.events", "access_point"): "the key `mlo_link` of an event is one of that role",
}
# What has the name of a role and is none: the next router of a route, and a kind of interface in nl80211.
OTHERS = {("plan.routes", "router"), ("plan.multipath", "router"), ("lab.verbs", "station")}
ENGINE = {"language", "loading", "plan", "rules", "report", "runs", "lab", "cli", "results", "machines"}


def roles_named(tree: ast.AST) -> set[str]:
    """The roles that a module imports, or takes from a node; what is called is no field."""
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    fields = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and id(n) not in called}
    return (fields | {m.removeprefix("nodes.") for m in imported(tree)}) & set(ROLES)


def test_the_engine_asks_roles_and_names_none() -> None:
    engine = {m: tree for m, tree in TREES.items() if m.partition(".")[0] in ENGINE}
    found = {(m, role) for m, tree in engine.items() for role in roles_named(tree)}
    assert found - OTHERS == set(NAMED)


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
        "lab.processes",  # the lab's own
        "lab.forked",  # the same, of our own code
        "lab.sandbox",  # the holder
        "lab.enter",  # a command in a node
        "machines.probe.programs",  # what programs say of themselves
        "machines.probe.scratch",  # where a kernel is probed
        "machines.guest.building",  # the image
        "machines.guest.confined",  # QEMU, without privileges
        "machines.guest.shell",  # ssh
        "machines.guest.lent",  # a child that tries what QEMU is to do
        "machines.guest.kvm",  # QEMU, to see whether KVM serves
        "machines.guest.command",  # ssh to a guest
        "machines.guest.booted",  # zstd, which unpacks its kernel, or one of the user's own
        "machines.ssh.remote",  # ssh to a machine
        "machines.ssh.relayed",  # what is said there, made visible
        "cli.called",  # the command line
        "report.matching",  # a regular expression
        "machines.ssh.request",  # the command line that another machine asked for
    }


def test_two_modules_open_netlink_sockets() -> None:
    assert users("socket.AF_NETLINK") == {"linux.netlink", "linux.unix_diag"}


def test_one_module_reads_yaml_and_one_writes_it() -> None:
    assert users("yaml") == {"language.parsing", "language.writing"}


def test_one_room_prints() -> None:
    prints = {
        m
        for m, tree in TREES.items()
        if any(isinstance(n, ast.Call) and ast.unparse(n.func) == "print" for n in ast.walk(tree))
    }
    assert {m.partition(".")[0] for m in prints | users("sys.stdout", "sys.stderr")} == {"cli"}
