"""Run the recipe of the guest's image in namespaces that end with this process, and report progress."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from testbed.errors import LabError, Unsupported
from testbed.machines.guest import recipe

Progress = Callable[[str, float], None]
_TOOLS = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux"}
_SUITES = Path("/usr/share/distro-info/ubuntu.csv")  # mmdebstrap finds the mirror of a suite with it
_SPACE = 4 << 30  # a build at its fullest, with the toolchain's root beside the image's
_PATH = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/local/sbin:/usr/sbin:/sbin")))
_SAYS, _FAULT, _GONE = "testbed: ", "testbed: fault: ", "testbed: gone: "
# When each step begins, as a fraction of a build (measured); within it, apt's lines are counted (three a package).
STEPS = {
    "sources": 0.0,
    "the lock": 0.02,
    "packages from": 0.04,
    "packages for building": 0.46,
    "hostapd": 0.57,
    "amt": 0.76,
    "kernel modules": 0.90,
    "Python packages": 0.91,
    "initramfs": 0.95,
    "root file system": 0.96,
    "done": 1.0,
}


def run(work: Path, sources: Path, log: Path, progress: Progress, locked: bool = False, mirror: str = "") -> Path:
    """Build an image by the recipe in `work` and return its folder there; raise the recipe's own words if it fails.

    `sources` keeps the pinned tarballs, and `log` everything that is said. When this process ends in the midst,
    however it ends, the kernel ends the build with its mounts; only `work` is left.
    """
    temporary = work / "tmp"
    temporary.mkdir()
    environment = {
        **os.environ,
        "PATH": _PATH,
        "TMPDIR": str(temporary),
        "PYTHON": sys.executable,
        "SOURCES": str(sources),
        "SUITE": recipe.SUITE,
        "MIRROR": mirror,
        "LOCK": str(work / "recipe" / recipe.LOCK) if locked else "",
    }
    tail: deque[str] = deque(maxlen=1000)
    with (
        open(log, "w", buffering=1) as copy,
        subprocess.Popen(
            (*_contained(), "sh", str(work / "recipe" / "image.sh"), str(work)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # Ctrl-C is ours: a build ends as a whole, not each process as it likes
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in watched(process.stdout, progress):
                copy.write(line)
                tail.append(line.rstrip())
        finally:
            process.kill()  # nothing happens to one that has ended
            process.stdout.read()  # to its end: then the last process inside is gone
    if process.returncode:
        raise _failure(tail, log)
    return work / "out"


def require(cache: Path) -> None:
    """Raise Unsupported with everything that a build needs and this machine lacks, and how to get it."""
    missing = []
    if platform.machine() != "x86_64":
        missing.append(f"an x86_64 machine, for which the guest is built: this one is {platform.machine()}")
    packages = {p for tool, p in _TOOLS.items() if shutil.which(tool, path=_PATH) is None}
    if lacking := packages | (set() if _SUITES.exists() else {"distro-info-data"}):
        missing.append(f"tools: apt-get install {' '.join(sorted(lacking))}")
    if importlib.util.find_spec("pip") is None:
        missing.append(f"pip: {sys.executable} -m ensurepip")
    if (free := shutil.disk_usage(cache).free) < _SPACE:
        cure = "set XDG_CACHE_HOME to another folder"
        missing.append(f"{_SPACE >> 30} GiB of space below {cache}: {free / (1 << 30):.1f} GiB are free; {cure}")
    if not lacking and (why := _no_namespaces()):  # these tools are what tries it
        missing.append(why)
    if missing:
        rows = [f"- {row}" for row in missing]
        raise Unsupported("\n".join(["image build: this machine lacks what follows; nothing was created", *rows]))


def discard(folder: Path) -> None:
    """Remove a folder, even if a build as an ordinary user left files of subordinate ids in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        subprocess.run((*_root(), "rm", "-rf", "--one-file-system", str(folder)), check=False)


def _root() -> tuple[str, ...]:
    """Return what makes a command root: of this machine, or of a user namespace with this user's subordinate ids."""
    return () if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--map-auto")


def _contained() -> tuple[str, ...]:
    """Return what gives a command mount and PID namespaces of its own, which end with this process.

    The death signal is asked for after the user namespace: a change of credentials clears it (prctl(2)).
    """
    apart = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    return (*_root(), "setpriv", "--pdeathsig", "KILL", *apart)


def _no_namespaces() -> str:
    argv = (*_contained(), "chroot", "/", "true")
    tried = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "PATH": _PATH})
    if tried.returncode == 0:
        return ""
    said = "; ".join(tried.stderr.splitlines()) or f"exit status {tried.returncode} of {argv[0]}"
    if os.geteuid() == 0:
        return f"namespaces: {said}; a container needs --privileged or CAP_SYS_ADMIN"
    ranges = "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"
    return f"namespaces for a user: {said}; apt-get install uidmap; {ranges}; or run as root"


def watched(lines: Iterable[str], progress: Progress) -> Iterator[str]:
    """Pass the lines of a build on, and report its progress."""
    lock, starts = recipe.lock(), [*STEPS.values(), 1.0]
    text, low, high, seen, expected = "", 0.0, 0.0, 0, 1
    for line in lines:
        if line.startswith(_SAYS) and not line.startswith((_FAULT, _GONE)):
            text = line.removeprefix(_SAYS).strip()
            step = next((n for n, begin in enumerate(STEPS) if text.startswith(begin)), None)
            if step is not None:
                low, high = starts[step], starts[step + 1]
            seen, expected = 0, 3 * (len(lock.build if "building" in text else lock.packages) or 200)
            progress(text, low)
        elif line.startswith(("Get:", "Unpacking ", "Setting up ")):
            seen += 1
            progress(text, low + (high - low) * min(1.0, seen / expected))
        yield line


def _failure(tail: Iterable[str], log: Path) -> LabError | Unsupported:
    rows = list(tail)
    gone = [row.removeprefix(_GONE) for row in rows if row.startswith(_GONE)]
    if gone:
        cure = "--update-lock takes what there is now; --mirror names a mirror that has these"
        return Unsupported("\n".join([f"image build --locked: versions that are no longer to be had ({cure})", *gone]))
    said = [row for row in rows if row.startswith((_FAULT, "E: "))] or rows[-10:]
    return LabError("\n".join([f"image build: the recipe failed; {log} has all that it said", *said]))
