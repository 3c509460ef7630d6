"""What is wrong with `requires`: the needs of a file beyond what its words imply (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from testbed import features
from testbed.language.document import Fault
from testbed.language.explain import suggest
from testbed.language.topology import Topology

_KERNEL = re.compile(r">=\s*[0-9]{1,4}(\.[0-9]{1,4}){0,2}")
_COUNTER = re.compile(r"[A-Za-z0-9]{1,32}\.[A-Za-z0-9_]{1,64}")
_PROGRAM = re.compile(r"[^\s\x00]{1,255}")


def faults(topology: Topology) -> Iterator[Fault]:
    """Yield (path, sentence, hint) for each fault."""
    needs = topology.requires
    if needs.kernel is not None and not _KERNEL.fullmatch(needs.kernel):
        what = f"{needs.kernel!r} is not a version of a kernel: write the least that will do"
        yield ("requires", "kernel"), what, "such as >=6.12"
    known = [f.name for f in features.ALL]
    for n, name in enumerate(needs.features):
        if features.named(name) is None:
            hint = suggest(name, known) or "`testbed doctor` lists them; tcp-congestion-NAME is one as well"
            yield ("requires", "features", n), f"there is no feature {name!r}", hint
    for n, name in enumerate(needs.counters):
        if not _COUNTER.fullmatch(name):
            what = f"{name!r} is not a counter: write the group and the name as /proc/net/netstat has them"
            yield ("requires", "counters", n), what, "such as TcpExt.TCPTimeouts"
    for n, name in enumerate(needs.programs):
        if not _PROGRAM.fullmatch(name):
            yield ("requires", "programs", n), f"{name!r} is not the name of a program", "such as nft"
