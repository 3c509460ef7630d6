"""Verbs on labs that are up: status, exec, shell, down."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

from testbed.cli import present
from testbed.cli.declared import Argument, Option
from testbed.cli.options import AsJson, LabName, NodeName, lab_names, node_names
from testbed.cli.process import execute, lab_elsewhere
from testbed.errors import InputError, LabError, TestbedError
from testbed.lab import asker, control, reach
from testbed.lab.enter import enter


def status(
    lab: Annotated[str | None, Argument(help="Name of the lab", autocompletion=lab_names)] = None,
    node: Annotated[
        str | None,
        Argument(help="A node, to show its interfaces as the kernel has them now", autocompletion=node_names),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the running labs (of another machine: @MACHINE), or show one lab, or the interfaces of one node."""
    if lab is not None and (there := lab_elsewhere(lab)) is not None:
        words = ("status", *filter(None, (there.lab, node)), *(["--json"] if as_json else []))
        raise SystemExit(there.enter(words))
    if lab is None:
        found = [s for n in reach.names() if (s := _status(n)) is not None]
        found += [_guest(n) for n in reach.names(reach.GUESTS)]
        if as_json:
            keys = ("name", "state", "machine", "topology", "nodes", "began")
            print(json.dumps([{k: s[k] for k in keys} for s in found], indent=1))
            return
        labs: list[tuple[str, ...]] = [
            (
                s["name"],
                s["state"],
                s["machine"],
                present.count(len(s["nodes"]), "node") if s["nodes"] else "",
                f"for {time.time() - s['began']:.0f} s",
                s.get("file", ""),
            )
            for s in found
        ]
        print(present.columns(labs or [("no lab is up",)]))
        return
    running = control.find(lab)
    if node is not None:
        from msgspec import to_builtins

        from testbed.lab import asking, look

        seen = look.interfaces(running.ask(asking.Look(node), patience=reach.ANSWERS))
        if as_json:
            print(json.dumps(to_builtins(seen), indent=1))
        else:
            rows = [
                (i.name, i.state, f"mtu {i.mtu}", " ".join(i.qdisc), " ".join(filter(None, (*i.addresses, i.amt))))
                for i in seen
            ]
            print(present.columns(rows))
            print(present.links(seen), end="")
        return
    from testbed.runs import bring_up

    state = running.status()
    lost = [str(s) for s in bring_up.drifted(running).steps()] if state["state"] == "up" else []
    if as_json:
        print(json.dumps({**state, "drift": lost}, indent=1))
        return
    age = f"{time.time() - state['began']:.0f} s"
    print(f"lab {state['name']}: {state['state']} for {age}, {present.count(len(state['nodes']), 'node')}")
    print(present.where(state["interfaces"]))
    for row in lost:
        print(f"  changed since, `testbed up` mends it: {row}")
    for key, one in running.bounds().items():
        print(f"  {key} {one.bound}: {one.by or 'not enforced: ' + one.unenforced}")
    processes = [(f"  {p['node']}&", p["name"], _alive(p["status"], p["pid"])) for p in state["processes"]]
    if processes:
        print(present.columns(processes))


def exec_(lab: LabName, node: NodeName, argv: Annotated[list[str], Argument(help="The command")]) -> None:
    """Run a command in a node, and exit with its exit status."""
    execute(lab, node, argv)


def shell(lab: LabName, node: NodeName) -> None:
    """Open a shell in a node."""
    if (there := lab_elsewhere(lab)) is not None:
        raise SystemExit(there.enter(("shell", there.lab, node)))
    os.environ["PS1"] = f"{node}@{lab}:\\w\\$ "
    program = os.environ.get("SHELL") or "/bin/sh"
    raise SystemExit(enter(lab, node, (program, "--norc") if program.endswith("bash") else (program,)))


def down(
    labs: Annotated[list[str] | None, Argument(help="Names of the labs", autocompletion=lab_names)] = None,
    everything: Annotated[bool, Option("--all", help="Take down all labs of this user")] = False,
) -> None:
    """Take labs down, with everything that belongs to them."""
    if not labs and not everything:
        raise InputError("name the labs to take down, or write --all (`testbed status` lists them)")
    faults: list[TestbedError] = []
    for name in [*reach.names(), *reach.names(reach.GUESTS)] if everything else labs or []:
        try:
            if (there := lab_elsewhere(name)) is not None:
                there.down()
            else:
                control.find(name).down()
        except TestbedError as e:
            faults.append(e)  # the others go down all the same
        else:
            print(f"lab {name} is down")
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise LabError("\n".join(map(str, faults)))


def _guest(name: str) -> dict[str, Any]:
    """Return what is known of a guest without asking it."""
    from testbed.machines.guest import microvm

    try:
        began = Path(f"/proc/{microvm.find(name).holder}").stat().st_ctime
    except (LabError, FileNotFoundError):
        return {**_unknown(name, "microvm"), "state": "coming or going"}
    return {**_unknown(name, "microvm"), "state": "up", "began": began}


def _unknown(name: str, machine: str) -> dict[str, Any]:
    return {"name": name, "machine": machine, "topology": "", "nodes": [], "began": time.time()}


def _status(name: str) -> dict[str, Any] | None:
    try:
        return {**control.find(name).status(), "machine": (asker.read().at or "@here")[1:]}
    except reach.SilentError:
        return {**_unknown(name, "here"), "state": "does not answer"}
    except LabError:
        return None  # it ended between two looks


def _alive(status: int | None, pid: int) -> str:
    return f"pid {pid}" if status is None else f"ended with {status}"
