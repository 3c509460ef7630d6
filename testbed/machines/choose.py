"""Choose the machine of a lab, and say why: this kernel if it has every feature, otherwise the microVM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from testbed.features import USERNS, Feature
from testbed.machines.probe import here
from testbed.machines.probe.here import Finding

AUTO, HERE, MICROVM = "auto", "here", "microvm"


class Choice(Struct, frozen=True):
    """A machine, one sentence that says why it was chosen, and what this machine lacks."""

    machine: str
    why: str
    missing: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        return f"machine {self.machine}: {self.why}"


def choose(requires: Iterable[Feature], machine: str = AUTO) -> Choice:
    """Return the machine for a lab that requires some features; Unsupported when it was to be this one and can't be.

    Everything is probed, also what the kernel would refuse in time: a lab must not begin on the wrong machine.
    """
    if machine not in (AUTO, HERE):
        return Choice(machine, "as asked for")  # it is asked for its features itself
    found = pick(here.probe(here.with_namespaces(requires)), machine)
    nowhere = bool(found.missing) and found.missing[0].feature == USERNS  # a guest's keeper lives in them as well
    if found.missing and (found.machine == HERE or nowhere):
        raise here.refusal(found.missing)
    return found


def pick(found: Sequence[Finding], machine: str = AUTO) -> Choice:
    """Return the choice that follows from what was found on this machine (pure)."""
    missing = here.causes(f for f in found if not f.present)
    if not missing:
        return Choice(
            HERE, "as asked for" if machine == HERE else "this kernel and its tools offer all that is required"
        )
    # A package gives what is only a program: a guest would be slower, and is not what its user means.
    programs = all(f.feature.group == "tools" and not f.feature.program for f in missing)
    return Choice(HERE if machine == HERE or programs else MICROVM, lacking(missing), missing)


def lacking(missing: Sequence[Finding]) -> str:
    """Return the clause that names what is missing and what needs it."""
    if missing[0].feature == USERNS:
        return missing[0].known  # where none of the others could be tried
    names = ", ".join(f"{f.feature.name} ({f.feature.purpose})" for f in missing)
    return f"this {'kernel' if all(f.feature.kernel for f in missing) else 'machine'} lacks {names}"
