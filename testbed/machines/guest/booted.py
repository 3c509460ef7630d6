"""What a guest boots from: the files of an image, the programs that it needs, and what a saved guest depends on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from testbed.errors import LabError, Unsupported
from testbed.lab.sources import digest
from testbed.machines import trusted
from testbed.machines.guest.qemu import Boot, Share

_TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}


class Image(Protocol):
    """An image to boot (machines/guest/image)."""

    @property
    def folder(self) -> Path:
        """Where its files are."""

    @property
    def digest(self) -> str:
        """The name of its content."""


def files(image: Image, boot: Boot) -> tuple[int, ...]:
    """Open the files to boot; LabError if they are not what was built, or if another user can change them."""
    found = trusted.verified(image.folder, [f.name for f in (boot.kernel, boot.initrd, boot.root)], _digests(image))
    if found.damaged:
        found.close()
        raise LabError(damaged(image.digest, found.damaged))
    for fd in found.files.values():
        if not os.fstat(fd).st_mode & 0o004 and os.geteuid() == 0:
            os.fchmod(fd, 0o644)  # QEMU is not run as root
    return tuple(found.files.values())


def _digests(image: Image) -> dict[str, str]:
    """Return the digests that an image's files had when it was built, as far as they are known."""
    try:
        files = json.loads(trusted.read(image.folder / "manifest.json"))["files"]
        return {name: str(files[name]["sha256"]) for name in files}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def damaged(digest: str, names: Iterable[str]) -> str:
    """Return the sentence about an image that has changed since it was built."""
    return f"image {digest} is damaged ({', '.join(names)}): `testbed image build --again` builds it again"


def require_programs() -> None:
    """Raise Unsupported if a program that a guest needs is missing, and say how to get it."""
    for tool in _TOOLS:
        _found(tool)


def _found(tool: str) -> str:
    if (path := shutil.which(tool)) is None:
        raise Unsupported(f"a microVM needs {tool}, which is not in PATH: apt-get install {_TOOLS[tool]}")
    return path


def qemu_version() -> str:
    """Return a text that changes when QEMU is replaced; to ask for its version takes as long as a restore."""
    program = _found("qemu-system-x86_64")
    found = os.stat(program)
    return f"{os.path.realpath(program)} {found.st_size} {found.st_mtime_ns}"


def processor() -> str:
    """Return what a guest that was saved under KVM depends on: the host's processor."""
    rows = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    return "\n".join(r for r in rows if r.split("\t")[0] in ("vendor_id", "model name", "flags", "microcode"))


def sources(code: Share) -> str:
    """Return the digest of testbed's sources and their path in the guest, which imports them again if it differs."""
    return digest(code.folder / "testbed", code.at)


def booted(image: Image, accel: str) -> Boot:
    """Return the files of an image that are booted."""
    return Boot(kernel(image), image.folder / "initrd.gz", image.folder / "root.squashfs", accel)


def kernel(image: Image) -> Path:
    """Return the image's kernel, unpacked once if the host can: an emulated processor takes 2 s to do that itself."""
    plain = image.folder / "vmlinux"
    if plain.exists():
        return plain
    packed = image.folder / "vmlinuz"
    data = trusted.read(packed, 1 << 28)
    begin = data.find(b"\x28\xb5\x2f\xfd")  # Debian's kernels are zstd
    if begin < 0 or shutil.which("zstd") is None:
        return packed
    unpacked = unzstd(data[begin:])
    if not unpacked.startswith(b"\x7fELF"):
        return packed
    part = plain.with_name(f".vmlinux-{os.getpid()}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "wb") as file:
            file.write(unpacked)
        part.rename(plain)
    except OSError:
        return packed
    return plain


def unzstd(data: bytes) -> bytes:
    """Return what zstd unpacks, also where something else follows, as in a bzImage; FileNotFoundError without zstd."""
    # It complains of what follows, and has written all by then.
    return subprocess.run(("zstd", "-dcq"), input=data, capture_output=True, check=False).stdout
