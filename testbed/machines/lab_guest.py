"""The guest of one lab: it is started for the lab and ends with it unless it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from testbed.errors import LabError
from testbed.machines import trusted
from testbed.machines.case import Told
from testbed.machines.guest import booted, microvm
from testbed.machines.guest.microvm import Guest
from testbed.machines.guest.qemu import Share, Size

RESULTS = "/results"  # in a guest: what it writes of its runs
Progress = Callable[[], AbstractContextManager[Callable[[str, float], None]]]  # entered where something takes long


@contextmanager
def guest(name: str, size: Size, told: Told, progress: Progress, stage: Path | None = None) -> Iterator[Guest]:
    """Yield a guest for one lab; it ends afterwards unless it was kept."""
    from testbed.machines.guest import image

    if (made := image.find()) is None:
        with progress() as say:
            made = image.build(say)
    shares = {"code": Share(Path(__file__).parents[2], "/testbed", only=("testbed",))}
    if stage is not None:
        shares["results"] = Share(stage, RESULTS, writable=True)
    try:
        found = microvm.start(made, size, name, shares, told=told)
    except LabError as e:
        # What was written before it came to the disk: nothing of the file's own has changed since.
        if damaged := made.damaged():
            raise LabError(f"{booted.damaged(made.digest, damaged)}\n{e}") from e
        raise
    try:
        yield found
    finally:
        if found.owner is not None and found.owner.fileno() >= 0:  # nobody has kept it
            microvm.stop(found)


def about(found: Guest) -> dict[str, object]:
    """Return what the manifest of a run contains about its guest."""
    from testbed.machines.guest import image

    made = image.find()
    return {
        "machine": "microvm",
        "accelerator": found.accel,
        "accelerator_why": found.why,
        "restored": found.restored,
        "image": {"digest": made.digest, "packages": made.manifest.get("packages", {})} if made else None,
    }


def require_guest() -> None:
    """Raise Unsupported if guests are impossible here, as far as that is known without starting one."""
    from testbed.machines.guest import building, image

    booted.require_programs()
    if image.find() is None:
        trusted.folder(image.cache())
        building.require(image.cache())
