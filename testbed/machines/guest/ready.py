"""What a microVM needs of this machine, and whether it is there: programs, KVM, the image, room on the disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from msgspec import Struct

from testbed.errors import InputError, Unsupported
from testbed.machines.guest import booted, building, image, kvm

_ROOM = 1 << 30  # bytes on the disk for an image and a saved guest


class Fact(Struct, frozen=True):
    """Something that a guest needs, or is faster with: whether it is there, how that is known, and the cure."""

    name: str
    present: bool
    known: str
    cure: str = ""
    needed: bool = True


def facts() -> tuple[Fact, ...]:
    """Return what there is for a guest on this machine; nothing is started."""
    programs = _programs()
    try:
        return (programs, _kvm(programs.present), _image(), _disk())
    except InputError as e:  # without a home directory there are no images
        return (programs, Fact("image", False, str(e)))


def _programs() -> Fact:
    try:
        booted.require_programs()
    except Unsupported as e:
        known, _, cure = str(e).partition(": ")
        return Fact("qemu", False, known.removeprefix("a microVM needs "), cure)
    return Fact("qemu", True, shutil.which("qemu-system-x86_64") or "")


def _kvm(qemu: bool) -> Fact:
    slow = "without it QEMU emulates the processor (TCG), and its speed limits every rate and delay"
    if not kvm.DEVICE.exists():
        return Fact("kvm", False, f"there is no {kvm.DEVICE}", slow, needed=False)
    if not os.access(kvm.DEVICE, os.R_OK | os.W_OK):
        cure = f"add this user to the group kvm; {slow}"
        return Fact("kvm", False, f"this user may not open {kvm.DEVICE}", cure, needed=False)
    made = image.find()
    tried = kvm.known(made.folder / "kvm.json", booted.qemu_version()) if made is not None and qemu else None
    if tried is None:
        known = f"{kvm.DEVICE} can be opened; the first guest finds out whether it works"
        return Fact("kvm", True, known, needed=False)
    works, why = tried
    return Fact("kvm", works, why, slow, needed=False)


def _image() -> Fact:
    if (made := image.find()) is not None:
        size = sum(file["bytes"] for file in made.manifest["files"].values()) / (1 << 20)
        return Fact("image", True, f"{made.digest}, built {made.manifest['built']}, {size:.0f} MiB")
    try:
        building.require(_there(image.cache()))
    except Unsupported as e:
        cure = "; ".join(row.removeprefix("- ") for row in str(e).splitlines()[1:])
        return Fact("image", False, "not built yet, and this machine can't build it", cure)
    cure = "`testbed image build`; otherwise the first guest builds it"
    return Fact("image", False, "not built yet", cure, needed=False)


def _disk() -> Fact:
    folder = _there(image.cache())
    free = shutil.disk_usage(folder).free
    known = f"{free / (1 << 30):.1f} GiB free at {folder}"
    return Fact("disk", free >= _ROOM, known, "an image and its saved guest take 0.6 GiB: make room")


def _there(folder: Path) -> Path:
    """Return a folder, or the nearest above it that exists."""
    return next(f for f in (folder, *folder.parents) if f.exists())
