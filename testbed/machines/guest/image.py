"""Images of the microVM's guest, cached by the digest of their recipe; each is complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from testbed.errors import InputError, Unsupported
from testbed.machines import home, trusted
from testbed.machines.guest import building, recipe
from testbed.machines.guest.building import Progress

if TYPE_CHECKING:
    from testbed.machines.guest.own_kernel import OwnKernel

FILES = ("vmlinuz", "initrd.gz", "root.squashfs")


class Image(Struct, frozen=True, dict=True):
    """A kernel, an initramfs and a root file system that belong together, in a folder of the cache."""

    folder: Path
    digest: str
    manifest: dict[str, Any]

    @property
    def kernel(self) -> Path:
        """The kernel, as QEMU's -kernel takes it."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initramfs that mounts the root file system."""
        return self.folder / "initrd.gz"

    @property
    def root(self) -> Path:
        """The root file system."""
        return self.folder / "root.squashfs"

    def damaged(self) -> list[str]:
        """Return the files that have changed since the build; it reads all of them, which takes a second."""
        return [name for name in FILES if _digest(self.folder / name) != self.manifest["files"][name]["sha256"]]

    def lock(self) -> recipe.Lock:
        """Return the packages that the image was made of."""
        both = (self.manifest["lock"]["packages"], self.manifest["lock"]["build"])
        return recipe.Lock(*(tuple(recipe.Package(*row) for row in rows) for rows in both))


def cache() -> Path:
    """Return the folder of this user's images."""
    return home.cache() / "images"


def find() -> Image | None:
    """Return the cached image of the current recipe and lock, None if there is none."""
    return _load(cache() / recipe.digest())


def images() -> list[Image]:
    """Return the cached images, newest first."""
    folders = cache().iterdir() if cache().is_dir() else ()
    found = [image for f in folders if not f.name.startswith(".") and (image := _load(f))]
    return sorted(found, key=lambda i: str(i.manifest["built"]), reverse=True)


def remove(digest: str) -> Image:
    """Remove one image and the guests saved beside it; raise InputError if there is none."""
    found = [i for i in images() if digest and i.digest.startswith(digest)]
    if len(found) != 1:
        known = ", ".join(i.digest for i in images()) or "there are none"
        raise InputError(f"{len(found) or 'no'} image{'s' * (len(found) > 1)} of digest {digest!r} (images: {known})")
    grave = Path(tempfile.mkdtemp(prefix=".removed-", dir=cache()))
    found[0].folder.rename(grave / "image")  # at once: half an image must not be found
    building.discard(grave)
    return found[0]


def build(
    progress: Progress,
    locked: bool = False,
    update_lock: bool = False,
    again: bool = False,
    mirror: str = "",
) -> Image:
    """Return the image of the current recipe; build it if the cache has none.

    `locked` takes exactly the versions of the lock, or raises Unsupported with those that are no longer to be had;
    `update_lock` writes the lock; `again` builds though there is one; `mirror` is for packages that the usual one lost.
    """
    began = time.monotonic()
    with _alone(progress):
        if locked and not recipe.lock().packages:
            raise InputError(
                f"image build --locked: there is no {recipe.FOLDER / recipe.LOCK}; --update-lock writes it"
            )
        there = None if again or update_lock else find()
        if there and not (locked and there.lock() != recipe.lock()):
            return there
        building.require(cache())
        if there is None and (cache() / recipe.digest()).exists():
            progress("the cached image is incomplete: it is built again", 0.0)
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=cache()))
        try:
            # A copy: what is edited meanwhile is of the next image.
            copy = shutil.copytree(recipe.FOLDER, work / "recipe")
            sources = trusted.folder(cache().parent / "sources")
            for file in sources.iterdir():
                os.close(trusted.opened(file))  # sums are compared before a build uses them
            out = building.run(work, sources, cache() / "build.log", progress, locked, mirror)
            made = _lock_of(out)
            if locked and (rows := recipe.difference(_all(recipe.lock(copy)), _all(made))):
                raise Unsupported("\n".join(["the mirror's packages do not make the locked image:", *rows]))
            if update_lock:
                for folder in (copy, recipe.FOLDER):
                    (folder / recipe.LOCK).write_text(str(made))
            return _keep(out, recipe.digest(copy), made, time.monotonic() - began)
        finally:
            building.discard(work)


def with_kernel(base: Image, own: OwnKernel, progress: Progress) -> Image:
    """Return an image with a kernel of the user's own instead of its own, made if the cache has none."""
    from testbed.machines.guest.own_kernel import packed

    read = packed(own)
    digest = hashlib.sha256(f"{base.digest} {read.digest}".encode()).hexdigest()[:12]
    with _alone(progress):
        if there := _load(cache() / digest):
            return there
        work = Path(tempfile.mkdtemp(prefix=".kernel-", dir=cache()))
        try:
            out = work / "out"
            out.mkdir()
            (out / "vmlinuz").write_bytes(read.kernel)
            # The kernel unpacks one archive after the other; one that is not compressed begins at a multiple of 4
            # (init/initramfs.c, unpack_to_rootfs).
            first = trusted.read(base.initrd, 1 << 28)
            (out / "initrd.gz").write_bytes(first + bytes(-len(first) % 4) + read.archive)
            os.link(base.root, out / "root.squashfs")
            manifest = {
                **base.manifest,
                "digest": digest,
                "kernel": read.release,
                "kernel_file": {"path": str(own.kernel), "sha256": hashlib.sha256(read.kernel).hexdigest()},
                "base": base.digest,
            }
            return _complete(out, digest, manifest)
        finally:
            building.discard(work)


def _load(folder: Path) -> Image | None:
    """Return the image in a folder if all its files are there in their original sizes."""
    with suppress(OSError, ValueError, KeyError):
        manifest = json.loads(trusted.read(folder / "manifest.json"))
        if all((folder / n).stat().st_size == manifest["files"][n]["bytes"] for n in FILES):
            return Image(folder, folder.name, manifest)
    return None


@contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    """Allow one build at a time, and remove what a killed build has left."""
    with open(trusted.lock(cache() / ".lock"), "w") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            progress("another build is running: waiting for it", 0.0)
            flock(file, LOCK_EX)
        for left in cache().glob(".*-*"):
            building.discard(left)
        yield


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _all(lock: recipe.Lock) -> tuple[recipe.Package, ...]:
    return (*lock.packages, *lock.build)


def _lock_of(out: Path) -> recipe.Lock:
    both = (recipe.parse_packages((out / name).read_text()) for name in ("packages", "build-packages"))
    return recipe.Lock(*both)


def _keep(out: Path, digest: str, made: recipe.Lock, seconds: float) -> Image:
    """Describe what was built and, at the very end, give it its name in the cache."""
    manifest = {
        "digest": digest,
        "suite": recipe.SUITE,
        "kernel": (out / "kernel").read_text().strip(),
        "packages": {p.name: p.version for p in made.packages},
        "lock": {k: [[p.name, p.version, p.architecture] for p in getattr(made, k)] for k in ("packages", "build")},
        "seconds": round(seconds, 1),
    }
    for name in ("kernel", "packages", "build-packages"):
        (out / name).unlink()
    return _complete(out, digest, manifest)


def _complete(out: Path, digest: str, manifest: dict[str, Any]) -> Image:
    files = {}
    for name in FILES:
        files[name] = {"sha256": _digest(out / name), "bytes": (out / name).stat().st_size}
        with open(out / name, "rb") as file:
            os.fsync(file.fileno())
    manifest = {**manifest, "files": files, "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    with open(out / "manifest.json", "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for name in (*FILES, "manifest.json"):
        (out / name).chmod(0o644)  # whatever the umask: QEMU, which is not run as root, reads them
    home = cache() / digest
    if home.exists():  # the same recipe with other packages, or what was broken
        home.rename(out.parent / "replaced")
    out.rename(home)
    return Image(home, digest, manifest)
