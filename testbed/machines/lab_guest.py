"""The guest of one lab: it is started for the lab and ends with it unless it is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from testbed.errors import LabError
from testbed.machines import trusted
from testbed.machines.case import Told
from testbed.machines.guest import booted, microvm
from testbed.machines.guest.microvm import Guest
from testbed.machines.guest.qemu import Share, Size

if TYPE_CHECKING:
    from testbed.machines.guest.image import Image
    from testbed.machines.guest.own_kernel import OwnKernel

RESULTS = "/results"  # in a guest: what it writes of its runs
Progress = Callable[[], AbstractContextManager[Callable[[str, float], None]]]  # entered where something takes long


class Wanted(Struct, frozen=True):
    """What a lab's guest shall be: its size, and the user's own kernel, None for the image's."""

    size: Size = Size()
    own: OwnKernel | None = None


class Made(Struct, frozen=True):
    """A guest, and the image that it was started from."""

    guest: Guest
    image: Image

    def about(self) -> dict[str, object]:
        """Return what the manifest of a run contains about it."""
        manifest = self.image.manifest
        own = {"kernel_file": manifest["kernel_file"]} if "kernel_file" in manifest else {}
        return {
            "machine": "microvm",
            "accelerator": self.guest.accel,
            "accelerator_why": self.guest.why,
            "restored": self.guest.restored,
            "image": {"digest": self.image.digest, "packages": manifest.get("packages", {})},
            **own,
        }


@contextmanager
def guest(name: str, wanted: Wanted, told: Told, progress: Progress, stage: Path | None = None) -> Iterator[Made]:
    """Yield a guest for one lab; it ends afterwards unless it was kept."""
    from testbed.machines.guest import image

    if (made := image.find()) is None:
        with progress() as say:
            made = image.build(say)
    if wanted.own is not None:
        made = image.with_kernel(made, wanted.own, lambda text, _: told(text))
    shares = {"code": Share(Path(__file__).parents[2], "/testbed", only=("testbed",))}
    if stage is not None:
        shares["results"] = Share(stage, RESULTS, writable=True)
    try:
        found = microvm.start(made, wanted.size, name, shares, told=told)
    except LabError as e:
        # What was written before it came to the disk: nothing of the file's own has changed since.
        if damaged := made.damaged():
            raise LabError(f"{booted.damaged(made.digest, damaged)}\n{e}") from e
        raise
    try:
        yield Made(found, made)
    finally:
        if found.owner is not None and found.owner.fileno() >= 0:  # nobody has kept it
            microvm.stop(found)


def require_guest() -> None:
    """Raise Unsupported if guests are impossible here, as far as that is known without starting one."""
    from testbed.machines.guest import building, image

    booted.require_programs()
    if image.find() is None:
        trusted.folder(image.cache())
        building.require(image.cache())
