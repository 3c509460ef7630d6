"""Names that are invalid or that two things would share: of files, hosts and metrics (pure).

A node has a folder of its name in a run's results, a name in the lab's /etc/hosts (as has each of its interfaces), and
metrics that begin with its name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from testbed.language.document import Fault, Path
from testbed.language.topology import NAME, NODE, Topology
from testbed.nodes.place import Interface
from testbed.steps import AIR

MACHINE = "machine"  # stands for the whole machine where metrics are named
# What a run's own files end in, beside the folders of its nodes; tests/kernel/test_run.py compares.
FILES = (".html", ".json", ".jsonl", ".log", ".pcapng", ".txt", ".xml", ".yaml")
# What other programs know without asking: RFC 6761 section 6.3, and the usual content of /etc/hosts (hosts(5)).
_HOSTS = re.compile(r"(?:.*\.)?(?:localhost|localdomain)|ip6-(?:localhost|loopback|localnet|mcastprefix|all[a-z]+)")
_PART = "(?:0x[0-9a-f]*|[0-9]+)"
# What inet_aton(3) takes for an address and looks like one: 10.1 is 10.0.0.1. A number alone is one too, and allowed.
_NUMBER = re.compile(rf"0x[0-9a-f]*|{_PART}(?:\.{_PART}){{1,3}}")


def faults(topology: Topology, nodes: Collection[str]) -> Iterator[Fault]:
    """Yield what is wrong with the names of the lab, its nodes and its workloads; `nodes` has faulty nodes too."""
    if not NAME.fullmatch(topology.name):
        slug = re.sub("[^a-z0-9]+", "-", topology.name.lower()).strip("-")
        hint = f"such as {slug}" if NAME.fullmatch(slug) else ""
        yield (
            ("name",),
            f"{topology.name!r} is not a valid name of a lab: a-z, then a-z, 0-9 and -, at most 40 in all",
            hint,
        )
    for name in nodes:
        yield from _node(topology, name)
    for name in topology.workloads:
        if name == MACHINE or name in nodes:
            owner = "to the whole machine" if name == MACHINE else "to a node"
            yield ("workloads", name), f"metrics named {name}.* belong {owner}: use another name", ""


def _node(topology: Topology, name: str) -> Iterator[Fault]:
    at, cure = ("nodes", name), "use another name"
    if not NODE.fullmatch(name):
        what = "a letter or digit, then letters, digits, _ . and -, at most 32 in all"
        yield at, f"{name!r} is not a valid name of a node: {what}", ""
    elif name == AIR and any(own.makes for node in topology.nodes.values() for _, own in node.brought()):
        yield at, f"{AIR} is the medium of a lab with Wi-Fi: {cure}", ""
    elif name == MACHINE:
        yield at, f"metrics named {name}.* belong to the whole machine: {cure}", ""
    elif name.lower().endswith(FILES):
        ends = f"a run's own files end in {name[name.rindex('.') :]}"
        yield at, f"{name!r} can't be the name of a node's folder in the results, because {ends}: {cure}", ""
    elif _NUMBER.fullmatch(name.lower()):
        yield at, f"programs read {name!r} as an IPv4 address (inet_aton(3)): {cure}", "such as h" + name
    elif _HOSTS.fullmatch(name.lower()):
        yield at, f"other programs know {name!r} as this machine or as all machines (hosts(5)): {cure}", ""
    elif (work := name.partition(".")[0]) != name and work in topology.workloads:
        yield at, f"metrics named {work}.* belong to a workload: {cure}", ""


def shared(interfaces: Iterable[Interface], nodes: Iterable[str]) -> Iterator[Fault]:
    """Yield each host name and each beginning of metrics that two nodes or interfaces would have, at both places.

    Names of hosts are the same in capitals (RFC 4343).
    """
    hosts: dict[str, tuple[Path, str]] = {}
    metrics: dict[str, tuple[Path, str]] = {}
    for name in nodes:
        yield from _clash(hosts, name.lower(), ("nodes", name), name, "the host")
    for i in interfaces:
        if _HOSTS.fullmatch(host := f"{i.node}-{i.name}".lower()):
            yield (
                i.at,
                f"the host name of {i.node}:{i.name} would be {host}, which has another meaning (hosts(5))",
                "",
            )
        yield from _clash(hosts, host, i.at, f"{i.node}:{i.name}", "the host")
        yield from _clash(metrics, f"{i.node}.{i.name}", i.at, f"{i.node}:{i.name}", "metrics named")


def _clash(seen: dict[str, tuple[Path, str]], key: str, at: Path, name: str, what: str) -> Iterator[Fault]:
    other_at, other = seen.setdefault(key, (at, name))
    if other != name:
        yield at, f"{name} and {other} would both be {what} {key}: rename one of them", ""
        yield other_at, f"{other} and {name} would both be {what} {key}: rename one of them", ""
