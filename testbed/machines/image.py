"""The guest's image: made of Debian packages by the recipe, cached by its digest, and there as a whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from testbed.errors import InputError, LabError, Unsupported
from testbed.machines import recipe

FILES = ("vmlinuz", "initrd.gz", "root.squashfs")
Progress = Callable[[str, float], None]
_TOOLS = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux"}
_SPACE = 4 << 30  # a build at its fullest, with the toolchain's root beside the image's
_PATH = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/local/sbin:/usr/sbin:/sbin")))
# When each step begins, as a fraction of a build; within it, apt's lines are counted (three a package).
_STEPS = (
    ("sources", 0.0),
    ("what of the lock", 0.03),
    ("packages from", 0.05),
    ("packages for building", 0.50),
    ("hostapd", 0.60),
    ("amt", 0.72),
    ("kernel modules", 0.80),
    ("Python packages", 0.85),
    ("initramfs", 0.90),
    ("root file system", 0.91),
    ("done", 1.0),
)


@dataclass(frozen=True)
class Image:
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

    def lock(self) -> recipe.Lock:
        """Return the packages that it was made of."""
        both = (self.manifest["lock"]["packages"], self.manifest["lock"]["build"])
        return recipe.Lock(*(tuple(recipe.Package(*row) for row in rows) for rows in both))


def cache() -> Path:
    """Return the folder of this user's images."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "testbed" / "images"


def find() -> Image | None:
    """Return the cached image of the present recipe and lock."""
    return _load(cache() / recipe.digest())


def images() -> list[Image]:
    """Return the cached images, newest first."""
    folders = cache().iterdir() if cache().is_dir() else ()
    found = [image for f in folders if not f.name.startswith(".") and (image := _load(f))]
    return sorted(found, key=lambda i: str(i.manifest["built"]), reverse=True)


def remove(digest: str) -> Image:
    """Remove one image, and what was saved beside it; raise InputError when there is none."""
    found = [i for i in images() if digest and i.digest.startswith(digest)]
    if len(found) != 1:
        known = ", ".join(i.digest for i in images()) or "there are none"
        raise InputError(f"{len(found) or 'no'} image{'s' * (len(found) > 1)} of digest {digest!r} (images: {known})")
    grave = Path(tempfile.mkdtemp(prefix=".removed-", dir=cache()))
    found[0].folder.rename(grave / "image")  # at once: half an image must not be found
    _discard(grave)
    return found[0]


def build(
    progress: Progress,
    locked: bool = False,
    update_lock: bool = False,
    again: bool = False,
    mirror: str = "",
) -> Image:
    """Return the image of the present recipe, made now when the cache has none.

    `locked` takes exactly the versions of the lock, or raises Unsupported with those that are no longer to be had;
    `update_lock` writes the lock; `again` builds though there is one; `mirror` is for packages that the usual one lost.
    """
    began = time.monotonic()
    with _alone(progress):
        there = None if again or update_lock else find()
        if there and not (locked and there.lock() != recipe.lock()):
            return there
        _require()
        work = Path(tempfile.mkdtemp(prefix=".building-", dir=cache()))
        try:
            _run(work, progress, locked, mirror)
            made = _lock_of(work / "out")
            if locked and (rows := recipe.difference(_all(recipe.lock()), _all(made))):
                raise Unsupported("\n".join(["the mirror's packages do not make the locked image:", *rows]))
            if update_lock:
                (recipe.FOLDER / recipe.LOCK).write_text(str(made))
            return _keep(work / "out", made, time.monotonic() - began)
        finally:
            _discard(work)


def _load(folder: Path) -> Image | None:
    """Return the image in a folder: all of it is there, at the size that it had when it was made."""
    with suppress(OSError, ValueError, KeyError):
        manifest = json.loads((folder / "manifest.json").read_text())
        if all((folder / n).stat().st_size == manifest["files"][n]["bytes"] for n in FILES):
            return Image(folder, folder.name, manifest)
    return None


@contextmanager
def _alone(progress: Progress) -> Iterator[None]:
    """One build at a time; what an earlier one left that was killed is removed."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / ".lock", "w") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            progress("another build is running: waiting for it", 0.0)
            flock(file, LOCK_EX)
        for left in cache().glob(".*-*"):
            _discard(left)
        yield


def _root() -> tuple[str, ...]:
    """Return what makes a command root: of this machine, or of a user namespace with this user's subordinate ids."""
    return () if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--map-auto")


def _discard(folder: Path) -> None:
    subprocess.run((*_root(), "rm", "-rf", "--one-file-system", str(folder)), check=False)


def _require() -> None:
    """Raise Unsupported, naming everything that a build needs and this machine lacks, and how to get it."""
    missing = []
    if platform.machine() != "x86_64":
        missing.append(f"an x86_64 machine: this one is {platform.machine()}, and the guest's kernel is built natively")
    packages = sorted({p for tool, p in _TOOLS.items() if shutil.which(tool, path=_PATH) is None})
    if packages:
        missing.append(f"tools: apt-get install {' '.join(packages)}")
    if importlib.util.find_spec("pip") is None:
        missing.append(f"pip in {sys.executable}: {sys.executable} -m ensurepip")
    if (free := shutil.disk_usage(cache()).free) < _SPACE:
        missing.append(
            f"{_SPACE >> 30} GiB below {cache()}: {free / (1 << 30):.1f} are free; XDG_CACHE_HOME takes another place"
        )
    if not missing:
        tried = subprocess.run((*_contained(), "true"), capture_output=True, text=True, check=False)
        if tried.returncode:
            user = (
                ""
                if os.geteuid() == 0
                else (
                    "; a user needs apt-get install uidmap, a line in /etc/subuid and /etc/subgid "
                    "(usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER) and user namespaces"
                )
            )
            missing.append(f"namespaces: {tried.stderr.strip()}{user}")
    if missing:
        raise Unsupported("\n".join(["image build: this machine lacks", *missing, "nothing was created"]))


def _contained() -> tuple[str, ...]:
    """Return what gives a command mount and PID namespaces of its own that die with this process, however it dies."""
    apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    return (*_root(), "setpriv", "--pdeathsig", "KILL", *apart)


def _run(work: Path, progress: Progress, locked: bool, mirror: str) -> None:
    """Run the recipe; raise with what it says when it fails."""
    temporary, log, sources = work / "tmp", cache() / ".log", cache().parent / "sources"
    temporary.mkdir()
    sources.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PATH": _PATH,
        "TMPDIR": str(temporary),
        "PYTHON": sys.executable,
        "SOURCES": str(sources),
        "SUITE": recipe.SUITE,
        "MIRROR": mirror,
        "LOCK": str(recipe.FOLDER / recipe.LOCK) if locked else "",
    }
    argv = (*_contained(), "sh", str(recipe.FOLDER / "image.sh"), str(work))
    with (
        open(log, "w") as copy,
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # Ctrl-C is ours: the build ends with its namespaces, not each process as it likes
        ) as process,
    ):
        assert process.stdout is not None
        tail: deque[str] = deque(maxlen=400)
        try:
            for line in _watched(process.stdout, progress):
                copy.write(line)
                tail.append(line.rstrip())
        finally:
            process.kill()  # nothing happens to one that has ended
            process.stdout.read()  # until the last process inside is gone
    if process.returncode == 0:
        return
    gone = [row.removeprefix("testbed: gone: ") for row in tail if row.startswith("testbed: gone: ")]
    if gone:
        cure = "`image build` takes the present versions, `--update-lock` keeps them, `--mirror` names a mirror that has these"
        raise Unsupported("\n".join([f"packages of the lock that are no longer to be had ({cure}):", *gone]))
    said = [row for row in tail if row.startswith(("testbed: fault: ", "E: "))] or list(tail)[-10:]
    raise LabError("\n".join([f"image build: it failed; all that it said is in {log}", *said]))


def _watched(lines: Iterator[str], progress: Progress) -> Iterator[str]:
    """Pass lines on, and tell how far a build is that says them."""
    wanted = recipe.lock()
    text, low, high, seen, expected = "", 0.0, 0.0, 0, 1
    for line in lines:
        if line.startswith("testbed: ") and not line.startswith(("testbed: fault", "testbed: gone")):
            text = line.removeprefix("testbed: ").strip()
            at = next((n for n, (step, _) in enumerate(_STEPS) if text.startswith(step)), None)
            if at is not None:
                low, high = _STEPS[at][1], _STEPS[min(at + 1, len(_STEPS) - 1)][1]
            seen, expected = 0, 3 * (len(wanted.build if "building" in text else wanted.packages) or 200)
            progress(text, low)
        elif line.startswith(("Get:", "Unpacking ", "Setting up ")):
            seen += 1
            progress(text, low + (high - low) * min(1.0, seen / expected))
        yield line


def _all(lock: recipe.Lock) -> tuple[recipe.Package, ...]:
    return (*lock.packages, *lock.build)


def _lock_of(out: Path) -> recipe.Lock:
    both = (recipe.parse_packages((out / name).read_text()) for name in ("packages", "build-packages"))
    return recipe.Lock(*both)


def _keep(out: Path, made: recipe.Lock, seconds: float) -> Image:
    """Describe what was built and, as the last act, give it its name in the cache."""
    files = {}
    for name in FILES:
        with open(out / name, "rb") as file:
            files[name] = {
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
                "bytes": os.fstat(file.fileno()).st_size,
            }
            os.fsync(file.fileno())
    digest = recipe.digest()
    manifest = {
        "digest": digest,
        "suite": recipe.SUITE,
        "kernel": (out / "kernel").read_text().strip(),
        "packages": {p.name: p.version for p in made.packages},
        "lock": {k: [[p.name, p.version, p.architecture] for p in getattr(made, k)] for k in ("packages", "build")},
        "files": files,
        "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
    }
    for name in ("kernel", "packages", "build-packages"):
        (out / name).unlink()
    with open(out / "manifest.json", "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    home = cache() / digest
    if home.exists():  # the same recipe with other packages, or what was broken
        home.rename(out.parent / "replaced")
    out.rename(home)
    return Image(home, digest, manifest)
