"""Command lines that `--help` shows for each verb."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "init": ("testbed init", "testbed init two-hosts", "testbed init two-path mine.yaml"),
    "check": ("testbed check lab.yaml", "testbed check --strict lab.yaml --set links.cable.loss=5%"),
    "plan": ("testbed plan lab.yaml",),
    "up": ("testbed up lab.yaml", "testbed up lab.yaml --name second --set links.cable.rate=10mbit"),
    "status": ("testbed status", "testbed status lab", "testbed status lab client"),
    "exec": ("testbed exec lab client -- ping -c 3 server", "testbed exec lab client -- sh -c 'exit 5'"),
    "shell": ("testbed shell lab client",),
    "down": ("testbed down lab", "testbed down --all"),
    "run": ("testbed run lab.yaml", "testbed run experiment.yaml --results out --machine microvm"),
    "report": ("testbed report results/lab/latest",),
    "schema": ("testbed schema > topology.schema.json",),
    "doctor": ("testbed doctor", "testbed doctor lab.yaml", "testbed doctor --machine microvm lab.yaml"),
    "monitor": ("testbed mptcp monitor lab client", "testbed mptcp monitor lab client --json"),
    "connections": ("testbed mptcp connections lab client",),
    "subflows": ("testbed mptcp subflows lab client --json",),
    "addresses": ("testbed mptcp addresses lab client",),
    "add": ("testbed machine add server ssh://me@server.example.org",),
    "build": ("testbed image build",),
}


def epilog(verb: str) -> str | None:
    """Return the examples of a verb as the end of its help, None where it has none."""
    found = EXAMPLES.get(verb, ())
    # The first line tells click to leave the others as they are.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in found)]) if found else None
