"""Verbs on where labs run: doctor, machine, image."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

from testbed.cli import present
from testbed.cli.declared import Argument, Option
from testbed.cli.inputs import assignments, contents, planned
from testbed.cli.options import AsJson, Sets
from testbed.cli.progress import fraction, say
from testbed.errors import InputError
from testbed.lab import asker


def doctor(
    file: Annotated[Path | None, Argument(help="Check only what this topology needs", dir_okay=False)] = None,
    machine: Annotated[
        str,
        Option(
            "--machine",
            help="Which machine to check: here, microvm, the name of a machine, or auto (this one, and whether it is "
            "enough)",
        ),
    ] = "auto",
    sets: Sets = None,
    fresh: Annotated[
        bool, Option("--fresh", help="Probe everything again, and ignore what is remembered from this boot")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show which features a machine has, how to get those that are missing, and where a topology would run."""
    from msgspec import to_builtins
    from msgspec.structs import replace

    from testbed import features
    from testbed.machines import choose
    from testbed.machines.guest.ready import facts as guest_facts
    from testbed.machines.probe import here

    if machine not in (choose.AUTO, choose.HERE):
        from testbed.machines import elsewhere
        from testbed.machines.errands import Errand
        from testbed.machines.lab_guest import Wanted

        flags = {"--fresh": fresh, "--json": as_json}
        given = (flag for flag, is_given in flags.items() if is_given)
        named, files = ((file,), contents(file, sets)) if file is not None else ((), {})
        words = ("doctor", *named, "--machine", "here", *assignments(sets), *given)
        errand = Errand(choose.choose((), machine), words, files)
        raise SystemExit(elsewhere.once(errand, f"doctor-{os.getpid()}", Wanted(), say, fraction))
    wanted = features.ALL
    if file is not None:
        from testbed.plan import run as schedule

        made = planned(file, sets)
        wanted = (features.USERNS, *made.requires(), *schedule.requires(made))
    found = here.cured(here.probe(wanted, fresh))
    own = asker.read().machine or choose.HERE
    choice = choose.pick(found, machine) if file is not None else choose.Choice(own, "no topology is asked about")
    choice = replace(choice, machine=own) if choice.machine == choose.HERE else choice
    facts = guest_facts() if machine == choose.AUTO and (file is None or choice.machine == choose.MICROVM) else ()
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
        told = {"machine": choice.machine, "why": choice.why, "features": rows, "microvm": to_builtins(facts)}
        print(json.dumps(told, indent=1))
    else:
        width = _width()
        print(present.features(found, width))
        if facts:
            print(present.guests(facts, width))
        if any(f.remembered for f in found):
            print("partly remembered of this boot: `testbed doctor --fresh` probes all again")
        print(present.paragraph(present.summary(found, own) if file is None else str(choice), width))
    unready = [f for f in facts if f.needed and not f.present]
    if file is not None and choice.machine == choose.MICROVM and unready and not as_json:
        why = "; ".join(f"{f.name}: {f.known}" + (f" ({f.cure})" if f.cure else "") for f in unready)
        print(present.paragraph(f"but no microVM can start on this machine: {why}", width))
    if file is not None and choice.missing and (choice.machine != choose.MICROVM or unready or own == choice.machine):
        raise SystemExit(4)


def _width() -> int:
    """Return how wide a table may be on this terminal; elsewhere it is 100 columns."""
    return min(140, max(80, shutil.get_terminal_size((100, 24)).columns))


def machine_add(
    name: Annotated[str, Argument(help="Name for the machine")],
    url: Annotated[str, Argument(help="ssh://user@host or ssh://user@host:port")],
    program: Annotated[str, Option("--program", help="Path of `testbed` on the machine")] = "testbed",
    options: Annotated[
        list[str] | None, Option("--ssh-option", metavar="KEY=VALUE", help="An option of ssh_config(5)")
    ] = None,
) -> None:
    """Add a machine, after checking that ssh reaches it and that it has the same testbed."""
    from testbed.machines import elsewhere
    from testbed.machines.errands import target_of
    from testbed.machines.ssh import known

    known.checked(name, url)
    made = known.Known(name, url, program, tuple(options or ()))
    version = elsewhere.same_version(target_of(made))
    known.add(made)
    print(f"machine {name}: {url}, testbed {version}")


def machine_ls(as_json: AsJson = False) -> None:
    """List the machines that labs can run on."""
    from testbed.machines.ssh import known

    there = known.machines().values()
    if as_json:
        print(json.dumps([{"name": k.name, "url": k.url, "program": k.program} for k in there], indent=1))
        return
    rows = [("here", "this kernel"), ("microvm", "a guest in QEMU (`testbed image ls`)")]
    print(present.columns([*rows, *((k.name, k.url) for k in there)]))


def machine_rm(name: Annotated[str, Argument(help="Name of the machine")]) -> None:
    """Remove a machine from the list; the machine itself does not change."""
    from testbed.machines.ssh import known

    known.remove(name)
    print(f"machine {name} is forgotten")


def image_build(
    locked: Annotated[
        bool,
        Option("--locked", help="Use exactly the package versions in the lock file, or fail and say which are gone"),
    ] = False,
    update_lock: Annotated[
        bool, Option("--update-lock", help="Build with the newest package versions, and write the lock file")
    ] = False,
    again: Annotated[bool, Option("--again", help="Build even if the image exists")] = False,
    mirror: Annotated[str, Option("--mirror", help="The Debian mirror that mmdebstrap uses")] = "",
    as_json: AsJson = False,
) -> None:
    """Build the image of the guest from Debian packages, unless it exists."""
    from testbed.machines.guest import image

    if locked and update_lock:
        raise InputError("--locked obeys the lock and --update-lock writes it: take one of them")
    before = image.find()
    with fraction() as progress:
        made = image.build(progress, locked, update_lock, again, mirror)
    if as_json:
        print(json.dumps({"folder": str(made.folder), **made.manifest}, indent=1))
        return
    same = before is not None and before.manifest == made.manifest
    took = "was there" if same else f"made in {made.manifest['seconds']:.0f} s"
    print(f"image {made.digest} {took}\n{present.images([made], made.digest)}\n{made.folder}")


def image_ls(as_json: AsJson = False) -> None:
    """List the cached images; * marks the image of the current recipe."""
    from testbed.machines.guest import image, recipe

    found = image.images()
    if as_json:
        print(json.dumps([{"folder": str(i.folder), **i.manifest} for i in found], indent=1))
    else:
        print(present.images(found, recipe.digest()) if found else "no image is there; `testbed image build` makes one")


def image_rm(
    digest: Annotated[str, Argument(help="Digest of the image, or the first characters of it")] = "",
    everything: Annotated[bool, Option("--all", help="Remove all images of this user")] = False,
) -> None:
    """Remove cached images."""
    from testbed.machines.guest import image

    if bool(digest) == everything:
        raise InputError("name the image to remove, or write --all (`testbed image ls` lists them)")
    for one in [i.digest for i in image.images()] if everything else [digest]:
        print(f"image {image.remove(one).digest} is removed")
