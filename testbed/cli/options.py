"""The arguments and options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from testbed.cli.declared import Argument, Option
from testbed.errors import TestbedError
from testbed.lab import control, reach


def lab_names(incomplete: str) -> list[str]:
    """Return the names of labs that begin so, for the shell."""
    return [n for n in (*reach.names(), *reach.names(reach.GUESTS)) if n.startswith(incomplete)]


def node_names(ctx: Any, incomplete: str) -> list[str]:
    """Return the nodes of the lab of this command line that begin so, for the shell."""
    try:
        nodes = control.find(ctx.params["lab"]).status()["nodes"]
    except (TestbedError, KeyError):
        return []
    return [n for n in nodes if n.startswith(incomplete)]


File = Annotated[Path, Argument(help="A topology or an experiment (YAML)", dir_okay=False)]
LabName = Annotated[str, Argument(help="Name of a running lab", autocompletion=lab_names)]
NodeName = Annotated[str, Argument(help="A node of the lab", autocompletion=node_names)]
Name = Annotated[str | None, Option("--name -n", help="Name of the lab (default: the name of the topology)")]
Sets = Annotated[
    list[str] | None,
    Option("--set", metavar="PATH=VALUE", help="Override one value, such as links.cable.loss=5%"),
]
Strict = Annotated[bool, Option("--strict", help="Take warnings of the file for errors")]
AsJson = Annotated[bool, Option("--json", help="Print JSON")]
MachineName = Annotated[
    str,
    Option(
        "--machine -m",
        help="Where to run: here, microvm, the name of a machine, or auto (here if this kernel has all that is "
        "required, otherwise microvm)",
    ),
]
Cpus = Annotated[int | None, Option("--cpus", min=1, max=64, help="Processors of a microVM (default: 2)")]
Kernel = Annotated[
    Path | None,
    Option("--kernel", metavar="BZIMAGE", help="Boot the microVM with this kernel instead of Debian's"),
]
Modules = Annotated[
    Path | None,
    Option("--modules", metavar="DIR", help="The modules of --kernel, as `make modules_install` leaves them"),
]
Memory = Annotated[
    int | None,
    Option("--memory", min=512, max=65536, help="Memory of a microVM in MiB (default: by the size of the topology)"),
]
