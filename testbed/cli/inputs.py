"""The files that a command line names, planned here or sent to another machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.cli.progress import say, warn
from testbed.errors import InputError
from testbed.lab import asker

if TYPE_CHECKING:
    from testbed.features import Feature
    from testbed.language.experiment import Experiment
    from testbed.language.topology import Topology
    from testbed.machines.lab_guest import Wanted
    from testbed.plan.lab import Plan


def planned(file: Path, sets: list[str] | None) -> Plan:
    """Return the plan of a topology with some values overridden, of several cases that of the first."""
    from testbed.loading import read
    from testbed.plan.lab import plan as make

    return make(first(read(file, tuple(sets or ()), under())))


def first(experiment: Experiment) -> Topology:
    """Return the topology of the first case, and say which one that is when there are others."""
    settings = experiment.cases[0].settings
    if len({case.settings for case in experiment.cases}) > 1 and not asker.read().file:
        say(f"the file has several cases, and this is the first: {', '.join(settings)}")
    return experiment.cases[0].topology


def checked(file: Path, sets: list[str] | None, strict: bool, aloud: bool = True) -> Experiment:
    """Read a file and say its warnings, unless another machine has; if `strict`, they are errors."""
    from testbed.loading import read

    found = read(file, tuple(sets or ()), under())
    if strict and found.warnings:
        raise InputError(*found.warnings)
    if aloud and not asker.read().file:
        for warning in found.warnings:
            warn(warning)
    return found


def under() -> Path | None:
    """Return the file that stands in for the topology that an experiment names, when another machine asks for it."""
    named = asker.read().under
    return Path(named) if named else None


def there(lab: str) -> tuple[str, ...]:
    """Return what another machine is told of a lab: it is not to look for a third one."""
    return ("--name", lab, "--machine", "here")


def machine_of(asked: str, kernel: Path | None, modules: Path | None) -> str:
    """Return the machine that is asked for: a kernel of one's own asks for the microVM."""
    from testbed.machines.choose import AUTO, MICROVM

    if modules is not None and kernel is None:
        raise InputError("--modules: these are the modules of a kernel; name its bzImage with --kernel")
    if kernel is None:
        return asked
    if asked not in (AUTO, MICROVM):
        raise InputError(f"--kernel: only a microVM boots a kernel of your own, not --machine {asked}")
    return MICROVM


def wanted(
    nodes: int,
    cpus: int | None,
    memory: int | None,
    kernel: Path | None,
    modules: Path | None,
    requires: Iterable[Feature],
) -> Wanted:
    """Return what the guest of a lab with so many nodes shall be."""
    from testbed.machines.guest.own_kernel import OwnKernel
    from testbed.machines.guest.qemu import Size
    from testbed.machines.lab_guest import Wanted

    return Wanted(Size.of(nodes, cpus, memory), None if kernel is None else OwnKernel(kernel, modules, tuple(requires)))


def assignments(sets: list[str] | None) -> Iterator[str]:
    """Yield the options that override values."""
    for assignment in sets or ():
        yield from ("--set", assignment)


def contents(file: Path, sets: list[str] | None) -> dict[Path, str]:
    """Return the files that a command line reads."""
    from testbed.loading import inlined, read

    found = read(file, tuple(sets or ()))
    texts = [found.texts[n] for n in ("experiment.yaml", "topology.yaml") if n in found.texts]
    paths = [p for p in (file, found.under) if p is not None]
    return {path: inlined(text, path) for path, text in zip(paths, texts, strict=True)}
