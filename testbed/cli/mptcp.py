"""Verbs on the MPTCP connections of a node: monitor, connections, subflows, addresses."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

from testbed.cli.declared import Argument
from testbed.cli.options import AsJson, LabName, NodeName
from testbed.cli.process import lab_elsewhere
from testbed.lab.enter import enter


def monitor(lab: LabName, node: NodeName, as_json: AsJson = False) -> None:
    """Print the events of MPTCP in a node as they come, and the commands of its path manager, until Ctrl-C."""
    _enter("monitor", lab, node, as_json)


def connections(lab: LabName, node: NodeName, as_json: AsJson = False) -> None:
    """List the MPTCP connections of a node."""
    _enter("connections", lab, node, as_json)


def subflows(lab: LabName, node: NodeName, as_json: AsJson = False) -> None:
    """List the subflows of the MPTCP connections of a node."""
    _enter("subflows", lab, node, as_json)


def addresses(lab: LabName, node: NodeName, as_json: AsJson = False) -> None:
    """List the addresses and their IDs: those of the node, and those of the peer of each connection."""
    _enter("addresses", lab, node, as_json)


def tell(what: Annotated[str, Argument()], as_json: AsJson = False) -> None:
    """Print what there is in the network namespace of this process, a line each."""
    from msgspec import json

    from testbed.programs.mptcp import listing
    from testbed.programs.mptcp.tell import rows

    for row in rows(what):
        print(json.encode(row).decode() if as_json else listing.text(row), flush=what == "monitor")


def _enter(what: str, lab: str, node: str, as_json: bool) -> NoReturn:
    """Ask in the node: sockets of the kernel, and of the path manager, are those of a network namespace."""
    words = ("--json",) if as_json else ()
    if (there := lab_elsewhere(lab)) is not None:
        raise SystemExit(there.enter(("mptcp", what, there.lab, node, *words)))
    raise SystemExit(enter(lab, node, (sys.executable, "-P", "-m", "testbed", "tell-mptcp", what, *words)))
