"""`testbed up`: bring a lab up where it can be, or change it in place."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from testbed.cli import present
from testbed.cli.declared import Option
from testbed.cli.inputs import assignments, checked, contents, first, machine_of, there, wanted
from testbed.cli.options import AsJson, Cpus, File, Kernel, MachineName, Memory, Modules, Name, Sets, Strict
from testbed.cli.progress import fraction, progress, say, tell
from testbed.errors import LabError
from testbed.lab import asker, control, ending, reach

if TYPE_CHECKING:
    from testbed.features import Feature
    from testbed.machines.choose import Choice


def up(
    file: File,
    name: Name = None,
    sets: Sets = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Print what would change, without changing it")] = False,
    recreate: Annotated[
        bool,
        Option("--recreate", help="Take the lab down and bring it up again if it can't be changed in place"),
    ] = False,
    machine: MachineName = "auto",
    cpus: Cpus = None,
    memory: Memory = None,
    kernel: Kernel = None,
    modules: Modules = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Bring a lab up, or change a running one in place; return when it is ready."""
    from msgspec import to_builtins

    from testbed.lab import asking
    from testbed.machines import choose
    from testbed.metrics import bounds
    from testbed.plan.lab import plan
    from testbed.runs import bring_up as start

    began = time.monotonic() - asker.read().spent
    machine = machine_of(machine, kernel, modules)
    made = plan(first(checked(file, sets, strict)))
    lab_name = name or made.name
    choice = _choice(machine, lab_name, made.requires())
    if choice.machine != choose.HERE:
        from testbed.machines import elsewhere
        from testbed.machines.errands import Errand

        tell(choice, machine)
        flags = {"--dry-run": dry_run, "--recreate": recreate, "--json": as_json}
        given = (flag for flag, is_given in flags.items() if is_given)
        words: tuple[str | Path, ...] = ("up", file, *there(lab_name), *assignments(sets), *given)
        errand = Errand(choice, words, contents(file, sets), began)
        guest = wanted(len(made.topology.nodes), cpus, memory, kernel, modules, made.requires())
        raise SystemExit(elsewhere.up(errand, lab_name, guest, say, fraction))
    what = "up"
    if lab_name in reach.names():
        lab = control.find(lab_name)
        _idle(lab)
        done = lab.ask(asking.Plan(), patience=ending.PATIENCE)
        change = start.mended(done, made.steps, start.drifted(lab, done))
        if dry_run:
            print(change, end="")
            start.permitted(lab_name, change)
            return
        if recreate and change.refused:
            lab.down()
            what = "recreated"
        else:
            start.permitted(lab_name, change)
            what = "changed" if change.removed or change.added else "unchanged"
            if what == "changed":
                print(change, end="", file=sys.stderr if as_json else sys.stdout)
                start.change(lab, made, change)
    elif dry_run:
        print("".join(f"+ {step}\n" for step in made.steps), end="")
        return
    if what in ("up", "recreated"):
        with progress(f"lab {lab_name}") as shown:
            lab = start.up(made, lab_name, say=shown, about={"file": asker.read().file or str(file.resolve())})
            _commit()
            lab.keep()
    held = lab.bounds() if made.bounds() else {}
    for sentence in bounds.unenforced(held):
        say(sentence)
    seconds = time.monotonic() - began
    if as_json:
        resources = {"resources": to_builtins(held)} if held else {}
        found = {"lab": lab_name, "result": what, "seconds": seconds, "nodes": start.where(made), **resources}
        print(json.dumps(found))
        return
    size = f"{present.count(len(made.topology.nodes), 'node')}, {present.count(len(made.topology.links), 'link')}"
    print(f"lab {lab_name} {what} in {seconds:.2f} s: {size}")
    print(present.where(start.where(made)))
    called = lab_name + asker.read().at
    print(f"testbed exec {called} NODE -- COMMAND   testbed shell {called} NODE   testbed down {called}")


def _choice(machine: str, lab: str, requires: Sequence[Feature]) -> Choice:
    """Return where a lab is to be: where one of its name is already, else where what it requires is."""
    from testbed.machines import choose
    from testbed.machines.ssh import known
    from testbed.runs import bring_up as start

    start.permitted_name(lab)
    if machine not in known.RESERVED:
        known.find(machine)
        return choose.choose((), machine)  # which has labs of its own
    if lab in reach.names():
        there = choose.HERE
    elif lab in reach.names(reach.GUESTS):
        there = choose.MICROVM
    else:
        return choose.choose(requires, machine)
    if machine not in (choose.AUTO, there):
        cure = f"`testbed down {lab}` ends it, `--name` takes another name"
        raise LabError(f"lab {lab}: it is up on machine {there}; {cure}")
    return choose.Choice(there, "the lab is up there")


def _idle(lab: control.RunningLab) -> None:
    state = lab.status()["state"]
    if state != "up":
        cure = f"`testbed down {lab.name}` ends it, `--name` takes another name"
        raise LabError(f"lab {lab.name}: it is busy (state {state}); {cure}")


def _commit() -> None:
    """Ignore SIGINT and SIGTERM from here on: the lab is up, and an error would say that it is not."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
