"""The command line: one function a verb. The module that prints, but for what `program` says at an error.

Exit statuses: 0 done, 1 a check failed, 2 wrong input, 3 Linux refused something, 4 a feature is missing, 70 a bug,
130 and 143 interrupted by SIGINT (Ctrl-C) and SIGTERM, 141 nobody reads what is printed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import click
import typer

from testbed import __version__, plain
from testbed.cli import init, present
from testbed.cli.program import execute, perform, place_of, script
from testbed.errors import InputError, LabError, TestbedError
from testbed.lab import control, ending, reach
from testbed.lab.enter import enter

if TYPE_CHECKING:
    from rich.console import Console

    from testbed.features import Feature
    from testbed.language.experiment import Experiment
    from testbed.machines.case import Perform
    from testbed.machines.choose import Choice
    from testbed.plan.lab import Plan
    from testbed.report.report import Report

# Everything else is imported by the verb that needs it: `testbed exec` must not pay for the YAML parser.

app = typer.Typer(
    name="testbed",
    help="Network-namespace labs from YAML: bring them up, run workloads in them, measure, judge.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
machines = typer.Typer(name="machine", help="Machines that ssh reaches: make them known, list and forget them.")
app.add_typer(machines, no_args_is_help=True)
images = typer.Typer(name="image", help="The image of the microVM's guest: make it, list and remove what is cached.")
app.add_typer(images, no_args_is_help=True)


@app.callback()
def _every() -> None:
    pass  # with this it is a program of verbs even where one alone is left (see narrow)


def _labs(incomplete: str) -> list[str]:
    return [n for n in (*reach.names(), *reach.names(reach.GUESTS)) if n.startswith(incomplete)]


def _nodes(context: typer.Context, incomplete: str) -> list[str]:
    try:
        nodes = control.find(context.params["lab"]).status()["nodes"]
    except (TestbedError, KeyError):
        return []
    return [n for n in nodes if n.startswith(incomplete)]


File = Annotated[Path, typer.Argument(help="A topology or an experiment (YAML)", dir_okay=False)]
LabName = Annotated[str, typer.Argument(help="Name of a lab that is up", autocompletion=_labs)]
NodeName = Annotated[str, typer.Argument(help="A node of it", autocompletion=_nodes)]
Name = Annotated[str | None, typer.Option("--name", "-n", help="Name of the lab; the topology's when left out")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override one value: links.cable.loss=5%"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]
MachineName = Annotated[
    str,
    typer.Option(
        "--machine",
        "-m",
        help="Where: auto (here if this kernel offers all that is required, else microvm), here, microvm, or a name",
    ),
]
Cpus = Annotated[int | None, typer.Option("--cpus", min=1, max=64, help="Processors of a microVM; 2 when left out")]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory", min=512, max=65536, help="Memory of a microVM in MiB; as the topology needs when left out"
    ),
]


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version")] = False) -> None:
    if version:
        print(f"testbed {__version__}")
        raise typer.Exit


app.command()(init.init)


@app.command()
def check(file: File, sets: Sets = None, as_json: AsJson = False) -> None:
    """Say whether a file is right: every error at once, nothing is created."""
    from testbed.loading import read

    try:
        cases = read(file, tuple(sets or ())).cases
    except InputError as e:
        if not as_json:
            raise
        keys = ("message", "file", "line", "column", "hint")
        print(json.dumps({"problems": [{k: getattr(p, k) for k in keys} for p in e.problems]}, indent=1))
        raise typer.Exit(e.exit_status) from e
    top = cases[0].topology
    if as_json:
        print(
            json.dumps(
                {
                    "problems": [],
                    "name": top.name,
                    "nodes": len(top.nodes),
                    "links": len(top.links),
                    "runs": len(cases),
                }
            )
        )
    else:
        size = [_count(len(top.nodes), "node"), _count(len(top.links), "link"), _count(len(top.workloads), "workload")]
        size += [_count(len(cases), "run")] if len(cases) > 1 else []
        print(f"{file}: {top.name}: {', '.join(size)}: no errors")


@app.command()
def plan(file: File, sets: Sets = None, as_json: AsJson = False) -> None:
    """Print exactly what `up`, and then `run`, would perform."""
    from testbed.plan import run as schedule

    made = _planned(file, sets)
    run = schedule.run_steps(made) if made.topology.workloads or made.topology.events or made.topology.capture else ()
    if as_json:
        kinds = [
            {"phase": p, "kind": type(s).__name__, "text": str(s)}
            for p, steps in (("up", made.steps), ("run", run))
            for s in steps
        ]
        print(json.dumps({"name": made.name, "steps": kinds}, indent=1))
        return
    print(made, end="")
    if run:
        print("\n# run")
        for step in run:
            print(step)


@app.command()
def up(
    file: File,
    name: Name = None,
    sets: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change, and change nothing")] = False,
    recreate: Annotated[
        bool,
        typer.Option("--recreate", help="Take a lab down that can't be changed in place, and make it anew"),
    ] = False,
    machine: MachineName = "auto",
    cpus: Cpus = None,
    memory: Memory = None,
    as_json: AsJson = False,
) -> None:
    """Bring a lab up, or change the one of this name in place; return when it is ready."""
    from msgspec import to_builtins

    from testbed.lab import asking, changes
    from testbed.machines import choose
    from testbed.metrics import bounds
    from testbed.runs import bring_up as start

    made = _planned(file, sets)
    lab_name = name or made.name
    choice = _choice(machine, lab_name, made.requires())
    if choice.machine != choose.HERE:
        from testbed.machines import elsewhere
        from testbed.machines.guest.qemu import Size

        _tell(choice, machine)
        flags = {"--dry-run": dry_run, "--recreate": recreate, "--json": as_json}
        given = (flag for flag, is_given in flags.items() if is_given)
        errand = elsewhere.Errand(choice, ("up", file, *_there(lab_name), *_set(sets), *given), _files(file, sets))
        guest = Size.of(len(made.topology.nodes), cpus, memory)
        raise typer.Exit(elsewhere.up(errand, lab_name, guest, _say, _fraction))
    began = time.monotonic()
    what = "up"
    if lab_name in reach.names():
        lab = control.find(lab_name)
        _idle(lab)
        change = changes.compare(lab.ask(asking.Plan(), patience=ending.PATIENCE), made.steps)
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
        with _progress(f"lab {lab_name}") as say:
            lab = start.up(made, lab_name, say=say, about={"file": os.environ.get("TESTBED_FILE", str(file.resolve()))})
            _commit()
            lab.keep()
    held = lab.bounds() if made.bounds() else {}
    for sentence in bounds.unenforced(held):
        _say(sentence)
    seconds = time.monotonic() - began
    if as_json:
        resources = {"resources": to_builtins(held)} if held else {}
        found = {"lab": lab_name, "result": what, "seconds": seconds, "nodes": start.where(made), **resources}
        print(json.dumps(found))
        return
    size = f"{_count(len(made.topology.nodes), 'node')}, {_count(len(made.topology.links), 'link')}"
    print(f"lab {lab_name} {what} in {seconds:.2f} s: {size}")
    print(present.where(start.where(made)))
    called = lab_name + os.environ.get("TESTBED_AT", "")
    print(f"testbed exec {called} NODE -- COMMAND   testbed shell {called} NODE   testbed down {called}")


@app.command()
def status(
    lab: Annotated[str | None, typer.Argument(help="Name of a lab", autocompletion=_labs)] = None,
    node: Annotated[
        str | None,
        typer.Argument(help="A node: its interfaces as the kernel has them now", autocompletion=_nodes),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the labs that are up (those of a machine: @MACHINE); or what one has; or the interfaces of a node."""
    if lab is not None and (place := place_of(lab)) is not None:
        words = ("status", *filter(None, (place.lab, node)), *(["--json"] if as_json else []))
        raise typer.Exit(place.enter(words))
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
                _count(len(s["nodes"]), "node") if s["nodes"] else "",
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
    state = running.status()
    if as_json:
        print(json.dumps(state, indent=1))
        return
    age = f"{time.time() - state['began']:.0f} s"
    print(f"lab {state['name']}: {state['state']} for {age}, {_count(len(state['nodes']), 'node')}")
    print(present.where(state["interfaces"]))
    for key, one in running.bounds().items():
        print(f"  {key} {one.bound}: {one.by or 'not enforced: ' + one.unenforced}")
    processes = [(f"  {p['node']}&", p["name"], _alive(p["status"], p["pid"])) for p in state["processes"]]
    if processes:
        print(present.columns(processes))


@app.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec_(lab: LabName, node: NodeName, argv: Annotated[list[str], typer.Argument(help="The command")]) -> None:
    """Run a command in a node; its exit status is this command's."""
    execute(lab, node, argv)


@app.command()
def shell(lab: LabName, node: NodeName) -> None:
    """Open a shell in a node."""
    if (place := place_of(lab)) is not None:
        raise typer.Exit(place.enter(("shell", place.lab, node)))
    os.environ["PS1"] = f"{node}@{lab}:\\w\\$ "
    program = os.environ.get("SHELL") or "/bin/sh"
    raise typer.Exit(enter(lab, node, (program, "--norc") if program.endswith("bash") else (program,)))


@app.command()
def down(
    labs: Annotated[list[str] | None, typer.Argument(help="Names of labs", autocompletion=_labs)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All labs of this user")] = False,
) -> None:
    """Take labs down; nothing of them is left."""
    if not labs and not everything:
        raise InputError("name the labs to take down, or write --all (`testbed status` lists them)")
    faults: list[TestbedError] = []
    for name in [*reach.names(), *reach.names(reach.GUESTS)] if everything else labs or []:
        try:
            if (place := place_of(name)) is not None:
                place.down()
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


@app.command()
def run(
    file: File,
    sets: Sets = None,
    name: Name = None,
    out: Annotated[Path, typer.Option("--results", help="Folder for results")] = Path("results"),
    machine: MachineName = "auto",
    cpus: Cpus = None,
    memory: Memory = None,
    as_json: AsJson = False,
) -> None:
    """Bring a lab up, run its workloads and events, keep everything, take it down, and judge."""
    from testbed.language.experiment import Case
    from testbed.loading import read
    from testbed.machines import choose
    from testbed.report import together
    from testbed.runs import bring_up as start
    from testbed.runs import case as runner
    from testbed.runs import cases
    from testbed.runs.invocation import invoked

    overrides = tuple(sets or ())
    experiment = read(file, overrides, _under())
    first = experiment.cases[0].topology.name
    start.permitted_name(name or first)
    # Which case lacks what is found out case by case: one that can't be here does not keep the others from it.
    choice = choose.choose(() if machine == choose.HERE else runner.requires(experiment), machine)
    many = len(experiment.cases)

    def shown_by(n: int, case: Case) -> AbstractContextManager[Callable[[dict[str, Any]], None]]:
        title = f"{case.topology.name} {case.label}".strip()
        return _progress(title, case.topology.seconds(), f"[{n + 1}/{many}] " if many > 1 else "")

    invocation = invoked(experiment, out, overrides)
    found = []
    try:
        with _performer(choice, machine, experiment, file, sets, name or first, cpus, memory) as perform:
            for outcome in cases.each(invocation, name, shown_by, perform):
                found.append(outcome)
                if not as_json and not (many == 1 and outcome.error is not None):  # of one alone the error says all
                    print(present.outcome(outcome, _short(outcome.folder) if outcome.folder is not None else ""))
    finally:  # Ctrl-C ends all: what was done is told
        if as_json:
            print(json.dumps([together.summary(o) for o in found], indent=1))
        cases.keep(invocation, found)
        if invocation.whole is not None and invocation.folder is not None and not as_json:
            print(present.several(found, together.verdict(found), _short(invocation.folder.path)))
    if (error := together.worst(found)) is not None:
        raise error


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A results folder, such as results/NAME/latest")],
    as_json: AsJson = False,
) -> None:
    """Derive metrics, verdict and JUnit from a results folder again, and print them."""
    from testbed.report import together
    from testbed.runs import again

    if together.rows(folder)[1]:
        outcomes = []
        for outcome in again.each(folder):
            outcomes.append(outcome)
            if not as_json:
                print(present.outcome(outcome, _short(outcome.folder) if outcome.folder is not None else ""))
        together.keep(folder, outcomes)
        if as_json:
            print(json.dumps([together.summary(o) for o in outcomes], indent=1))
        else:
            print(present.several(outcomes, together.verdict(outcomes), _short(folder)))
        error = together.worst(outcomes)
    else:
        found = again.again(folder)
        if as_json:
            print(json.dumps(_derived(found), indent=1))
        else:
            print(present.report(found, _short(found.folder)))
        error = together.missed(found)
    if error is not None:
        raise error


@app.command()
def schema() -> None:
    """Print the language as a JSON Schema, for editors."""
    from testbed.language.schema import schema as made

    print(json.dumps(made(), indent=1))


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="Only what this topology needs", dir_okay=False)] = None,
    machine: Annotated[
        str,
        typer.Option("--machine", help="Which machine is asked: auto (this one, and whether it serves), here, microvm"),
    ] = "auto",
    sets: Sets = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Probe all again; nothing remembered of this boot counts")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a machine offers, how that is known and how to get what is missing; and where a topology would run."""
    from testbed import features
    from testbed.machines import choose
    from testbed.machines.probe import here

    if machine not in (choose.AUTO, choose.HERE):
        from testbed.machines import elsewhere
        from testbed.machines.guest.qemu import Size

        flags = {"--fresh": fresh, "--json": as_json}
        given = (flag for flag, is_given in flags.items() if is_given)
        named, files = ((file,), _files(file, sets)) if file is not None else ((), {})
        words = ("doctor", *named, "--machine", "here", *_set(sets), *given)
        errand = elsewhere.Errand(choose.choose((), machine), words, files)
        raise typer.Exit(elsewhere.once(errand, f"doctor-{os.getpid()}", Size(), _say, _fraction))
    wanted = features.ALL
    if file is not None:
        from testbed.plan import run as schedule

        made = _planned(file, sets)
        wanted = (features.USERNS, *made.requires(), *schedule.requires(made))
    found = here.probe(wanted, fresh)
    choice = (
        choose.pick(found, machine) if file is not None else choose.Choice(choose.HERE, "no topology is asked about")
    )
    if as_json:
        rows = [
            {
                "feature": f.feature.name,
                "group": f.feature.group,
                "present": f.present,
                "known": f.known,
                "remembered": f.remembered,
                "for": f.feature.purpose,
                "get": f.feature.cure,
            }
            for f in found
        ]
        print(json.dumps({"machine": choice.machine, "why": choice.why, "features": rows}, indent=1))
    else:
        print(present.features(found))
        if any(f.remembered for f in found):
            print("partly remembered of this boot: `testbed doctor --fresh` probes all again")
        if file is not None:
            print(present.paragraph(str(choice)))
    if file is not None and choice.missing and choice.machine == choose.HERE:
        raise typer.Exit(4)


@machines.command(name="add")
def machine_add(
    name: Annotated[str, typer.Argument(help="What it is called from now on")],
    url: Annotated[str, typer.Argument(help="ssh://user@host or ssh://user@host:port")],
    program: Annotated[str, typer.Option("--program", help="The path of `testbed` there")] = "testbed",
    options: Annotated[
        list[str] | None, typer.Option("--ssh-option", metavar="KEY=VALUE", help="As of ssh_config(5)")
    ] = None,
) -> None:
    """Make a machine known, once ssh reaches it and it has this program at this version."""
    from testbed.machines import elsewhere
    from testbed.machines.ssh import known

    known.checked(name, url)
    made = known.Known(name, url, program, tuple(options or ()))
    version = elsewhere.same_version(elsewhere.target_of(made))
    known.add(made)
    print(f"machine {name}: {url}, testbed {version}")


@machines.command(name="ls")
def machine_ls(as_json: AsJson = False) -> None:
    """List the machines that a lab may be brought up on."""
    from testbed.machines.ssh import known

    there = known.machines().values()
    if as_json:
        print(json.dumps([{"name": k.name, "url": k.url, "program": k.program} for k in there], indent=1))
        return
    rows = [("here", "this kernel"), ("microvm", "a guest in QEMU (`testbed image ls`)")]
    print(present.columns([*rows, *((k.name, k.url) for k in there)]))


@machines.command(name="rm")
def machine_rm(name: Annotated[str, typer.Argument(help="Its name")]) -> None:
    """Forget a machine; nothing on it changes."""
    from testbed.machines.ssh import known

    known.remove(name)
    print(f"machine {name} is forgotten")


@app.command(name="run-case", hidden=True)
def run_case(
    file: File,
    case: Annotated[int, typer.Option("--case", min=0)],
    name: Annotated[str, typer.Option("--name")],
    out: Annotated[Path, typer.Option("--results")],
    sets: Sets = None,
) -> None:
    """Perform a case for the machine that asked for it, which makes the report; what is said is JSON for it."""
    from testbed.loading import read
    from testbed.runs import case as runner

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value), flush=True)

    try:
        runner.perform(read(file, tuple(sets or ()), _under()), case, out.resolve(), name, say)
    except TestbedError as e:
        say({"failed": str(e), "status": e.exit_status})
        raise typer.Exit(e.exit_status) from e


@app.command(hidden=True)
def serve_request() -> None:
    """Perform a command line that another machine sends on standard input."""
    from testbed.machines.ssh import request

    raise typer.Exit(request.serve(script))


@app.command(hidden=True)
def collect_request(token: str) -> None:
    """Send the results of a request to the machine that sent it."""
    from testbed.machines.ssh import request

    request.collect(token)


@images.command(name="build")
def image_build(
    locked: Annotated[
        bool, typer.Option("--locked", help="Exactly the versions of the lock, or say what is gone")
    ] = False,
    update_lock: Annotated[bool, typer.Option("--update-lock", help="Build anew and write the lock")] = False,
    again: Annotated[bool, typer.Option("--again", help="Build although there is one")] = False,
    mirror: Annotated[str, typer.Option("--mirror", help="A mirror of Debian packages, for mmdebstrap")] = "",
    as_json: AsJson = False,
) -> None:
    """Make the guest's image of Debian packages, unless it is there."""
    from testbed.machines.guest import image

    if locked and update_lock:
        raise InputError("--locked obeys the lock and --update-lock writes it: take one of them")
    before = image.find()
    with _fraction() as progress:
        made = image.build(progress, locked, update_lock, again, mirror)
    if as_json:
        print(json.dumps({"folder": str(made.folder), **made.manifest}, indent=1))
        return
    same = before is not None and before.manifest == made.manifest
    took = "was there" if same else f"made in {made.manifest['seconds']:.0f} s"
    print(f"image {made.digest} {took}\n{present.images([made], made.digest)}\n{made.folder}")


@images.command(name="ls")
def image_ls(as_json: AsJson = False) -> None:
    """List the images that are cached; * marks the one of the present recipe."""
    from testbed.machines.guest import image, recipe

    found = image.images()
    if as_json:
        print(json.dumps([{"folder": str(i.folder), **i.manifest} for i in found], indent=1))
    else:
        print(present.images(found, recipe.digest()) if found else "no image is there; `testbed image build` makes one")


@images.command(name="rm")
def image_rm(
    digest: Annotated[str, typer.Argument(help="Its digest, or how that begins")] = "",
    everything: Annotated[bool, typer.Option("--all", help="All images of this user")] = False,
) -> None:
    """Remove cached images."""
    from testbed.machines.guest import image

    if bool(digest) == everything:
        raise InputError("name the image to remove, or write --all (`testbed image ls` lists them)")
    for one in [i.digest for i in image.images()] if everything else [digest]:
        print(f"image {image.remove(one).digest} is removed")


def _planned(file: Path, sets: list[str] | None) -> Plan:
    from testbed.loading import load
    from testbed.plan.lab import plan as make

    return make(load(file, tuple(sets or ()), _under()))


def _under() -> Path | None:
    """Return the file that stands in for the topology that an experiment names, when another machine asks for it."""
    named = os.environ.get("TESTBED_UNDER")
    return Path(named) if named is not None else None


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


@contextmanager
def _performer(
    choice: Choice,
    asked: str,
    experiment: Experiment,
    file: Path,
    sets: list[str] | None,
    lab: str,
    cpus: int | None,
    memory: int | None,
) -> Iterator[Perform | None]:
    """Yield what performs the cases of an experiment on another machine, None when that is this one."""
    from testbed.machines import choose

    if choice.machine == choose.HERE:
        yield None
        return
    from testbed.machines import elsewhere
    from testbed.machines.guest.qemu import Size

    _tell(choice, asked)
    errand = elsewhere.Errand(choice, ("run-case", file, "--name", lab, *_set(sets)), _files(file, sets))
    size = Size.of(max(len(case.topology.nodes) for case in experiment.cases), cpus, memory)
    with elsewhere.cases(errand, lab, size, _say, _fraction) as perform:
        yield perform


def _tell(choice: Choice, asked: str) -> None:
    if asked == "auto":  # else it is known
        print(choice, file=sys.stderr)


def _say(text: str) -> None:
    print(f"testbed: {plain.shown(text)}", file=sys.stderr)  # here, for while progress is drawn that prints


def _there(lab: str) -> tuple[str, ...]:
    """Return what another machine is told of a lab: it is not to look for a third one."""
    return ("--name", lab, "--machine", "here")


def _set(sets: list[str] | None) -> Iterator[str]:
    for assignment in sets or ():
        yield from ("--set", assignment)


def _files(file: Path, sets: list[str] | None) -> dict[Path, str]:
    """Return the files that a command line reads."""
    from testbed.loading import read

    found = read(file, tuple(sets or ()))
    texts = [found.texts[n] for n in ("experiment.yaml", "topology.yaml") if n in found.texts]
    return dict(zip((p for p in (file, found.under) if p is not None), texts, strict=True))


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


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _status(name: str) -> dict[str, Any] | None:
    try:
        return {**control.find(name).status(), "machine": os.environ.get("TESTBED_AT", "@here")[1:]}
    except reach.SilentError:
        return {**_unknown(name, "here"), "state": "does not answer"}
    except LabError:
        return None  # it ended between two looks


def _idle(lab: control.RunningLab) -> None:
    state = lab.status()["state"]
    if state != "up":
        cure = f"`testbed down {lab.name}` ends it, `--name` takes another name"
        raise LabError(f"lab {lab.name}: it is busy (state {state}); {cure}")


def _alive(status: int | None, pid: int) -> str:
    return f"pid {pid}" if status is None else f"ended with {status}"


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def _derived(found: Report) -> dict[str, Any]:
    """Return what scripts are told of a report."""
    return {"name": found.topology.name, "folder": str(found.folder), **found.verdict_json()}


@contextmanager
def _progress(title: str, seconds: float = 0.0, prefix: str = "") -> Iterator[Callable[[dict[str, Any]], None]]:
    """Show progress on stderr: a bar on a terminal, a line an event elsewhere."""
    if not sys.stderr.isatty():

        def line(value: dict[str, Any]) -> None:
            if "step" in value:
                print(f"{prefix}{value['t']:8.3f} s  {value['step']}", file=sys.stderr)
            elif "started" in value:
                print(f"{prefix}{title}: started, {seconds:g} s", file=sys.stderr)

        yield line
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    title = plain.line(title)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(), transient=True) as progress:
        task = progress.add_task(f"{prefix}{title}: making the lab", total=None)

        def show(value: dict[str, Any]) -> None:
            if "step" in value:
                progress.update(task, completed=value["t"])
                progress.console.print(
                    f"{value['t']:8.3f} s  {plain.line(value['step'])}", markup=False, highlight=False
                )
            elif "started" in value:
                progress.update(task, description=f"{prefix}{title}: running", total=seconds or None, completed=0)
            elif value.get("waiting"):
                progress.update(task, description=f"{prefix}{title}: waiting for {value['waiting']} conditions")

        yield show


@contextmanager
def _fraction() -> Iterator[Callable[[str, float], None]]:
    """Show how far something is on stderr: a bar on a terminal, a line a step elsewhere."""
    began, said = time.monotonic(), [""]
    if not sys.stderr.isatty():

        def line(text: str, _: float) -> None:
            if text != said[0]:
                said[0] = text
                print(f"{time.monotonic() - began:7.1f} s  {text}", file=sys.stderr)

        yield line
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_console(), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda text, fraction: progress.update(task, description=plain.line(text), completed=fraction)


def _console() -> Console:
    """Return where progress is drawn: the terminal itself, for drawing takes what a `Screen` would spell out."""
    from rich.console import Console

    return Console(file=sys.__stderr__, emoji=False)


def _commit() -> None:
    """From here on the lab is up: neither of these signals may leave one and say that there is none."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def command_line() -> None:
    """Do what `sys.argv` asks for; errors are raised as they are, but for what click says of the words themselves.

    Click's own `main` takes the end of an input, or of a pipe, for its user's wish to abort, with status 1.
    """
    if "_TESTBED_COMPLETE" in os.environ:  # the shell asks
        app()
    command = typer.main.get_command(app)
    try:
        with command.make_context("testbed", sys.argv[1:]) as context:
            command.invoke(context)
    except click.ClickException as e:
        e.show()
        raise SystemExit(e.exit_code) from e
    except click.exceptions.Exit as e:
        raise SystemExit(e.exit_code) from e


def main() -> NoReturn:
    """Run the command line of `sys.argv`."""
    perform(command_line)


def narrow(verb: str = "") -> None:
    """Leave the verb that is asked for: typer would make all of them first, which takes longer than some do."""
    commands = [c for c in app.registered_commands if c.name == verb or (c.callback and c.callback.__name__ == verb)]
    groups = [g for g in app.registered_groups if g.typer_instance and g.typer_instance.info.name == verb]
    if commands or groups:
        app.registered_commands, app.registered_groups = commands, groups
