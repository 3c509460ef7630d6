"""Verbs on where labs run: doctor, machine, image."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from testbed.cli import present
from testbed.cli.declared import Argument, Option
from testbed.cli.inputs import assignments, contents, planned
from testbed.cli.options import AsJson, Sets
from testbed.cli.progress import fraction, say
from testbed.errors import InputError

if TYPE_CHECKING:
    pass


def doctor(
    file: Annotated[Path | None, Argument(help="Only what this topology needs", dir_okay=False)] = None,
    machine: Annotated[
        str,
        Option("--machine", help="Which machine is asked: auto (this one, and whether it serves), here, microvm"),
    ] = "auto",
    sets: Sets = None,
    fresh: Annotated[bool, Option("--fresh", help="Probe all again; nothing remembered of this boot counts")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a machine offers, how that is known and how to get what is missing; and where a topology would run."""
    from testbed import features
    from testbed.machines import choose
    from testbed.machines.probe import here

    if machine not in (choose.AUTO, choose.HERE):
        from testbed.machines import elsewhere
        from testbed.machines.errands import Errand
        from testbed.machines.guest.qemu import Size

        flags = {"--fresh": fresh, "--json": as_json}
        given = (flag for flag, is_given in flags.items() if is_given)
        named, files = ((file,), contents(file, sets)) if file is not None else ((), {})
        words = ("doctor", *named, "--machine", "here", *assignments(sets), *given)
        errand = Errand(choose.choose((), machine), words, files)
        raise SystemExit(elsewhere.once(errand, f"doctor-{os.getpid()}", Size(), say, fraction))
    wanted = features.ALL
    if file is not None:
        from testbed.plan import run as schedule

        made = planned(file, sets)
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
        raise SystemExit(4)


def machine_add(
    name: Annotated[str, Argument(help="What it is called from now on")],
    url: Annotated[str, Argument(help="ssh://user@host or ssh://user@host:port")],
    program: Annotated[str, Option("--program", help="The path of `testbed` there")] = "testbed",
    options: Annotated[
        list[str] | None, Option("--ssh-option", metavar="KEY=VALUE", help="As of ssh_config(5)")
    ] = None,
) -> None:
    """Make a machine known, once ssh reaches it and it has this program at this version."""
    from testbed.machines import elsewhere
    from testbed.machines.errands import target_of
    from testbed.machines.ssh import known

    known.checked(name, url)
    made = known.Known(name, url, program, tuple(options or ()))
    version = elsewhere.same_version(target_of(made))
    known.add(made)
    print(f"machine {name}: {url}, testbed {version}")


def machine_ls(as_json: AsJson = False) -> None:
    """List the machines that a lab may be brought up on."""
    from testbed.machines.ssh import known

    there = known.machines().values()
    if as_json:
        print(json.dumps([{"name": k.name, "url": k.url, "program": k.program} for k in there], indent=1))
        return
    rows = [("here", "this kernel"), ("microvm", "a guest in QEMU (`testbed image ls`)")]
    print(present.columns([*rows, *((k.name, k.url) for k in there)]))


def machine_rm(name: Annotated[str, Argument(help="Its name")]) -> None:
    """Forget a machine; nothing on it changes."""
    from testbed.machines.ssh import known

    known.remove(name)
    print(f"machine {name} is forgotten")


def image_build(
    locked: Annotated[bool, Option("--locked", help="Exactly the versions of the lock, or say what is gone")] = False,
    update_lock: Annotated[bool, Option("--update-lock", help="Build anew and write the lock")] = False,
    again: Annotated[bool, Option("--again", help="Build although there is one")] = False,
    mirror: Annotated[str, Option("--mirror", help="A mirror of Debian packages, for mmdebstrap")] = "",
    as_json: AsJson = False,
) -> None:
    """Make the guest's image of Debian packages, unless it is there."""
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
    """List the images that are cached; * marks the one of the present recipe."""
    from testbed.machines.guest import image, recipe

    found = image.images()
    if as_json:
        print(json.dumps([{"folder": str(i.folder), **i.manifest} for i in found], indent=1))
    else:
        print(present.images(found, recipe.digest()) if found else "no image is there; `testbed image build` makes one")


def image_rm(
    digest: Annotated[str, Argument(help="Its digest, or how that begins")] = "",
    everything: Annotated[bool, Option("--all", help="All images of this user")] = False,
) -> None:
    """Remove cached images."""
    from testbed.machines.guest import image

    if bool(digest) == everything:
        raise InputError("name the image to remove, or write --all (`testbed image ls` lists them)")
    for one in [i.digest for i in image.images()] if everything else [digest]:
        print(f"image {image.remove(one).digest} is removed")
