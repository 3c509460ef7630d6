"""Which testbed this is: every commit has the same version number, so the digest of the sources is a part of it.

It is computed where versions meet, and nowhere else: reading all sources takes some milliseconds, and on an emulated
processor far more.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from testbed import __version__

PACKAGE = Path(__file__).parent.parent


def digest(package: Path = PACKAGE, salt: str = "") -> str:
    """Return the digest of the sources of a package, which is the same wherever it is installed."""
    from hashlib import sha256

    found = sha256(salt.encode())
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package.parent)
        found.update(f"{name}".encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()[:16]


@cache
def version() -> str:
    """Return the version of this program with the digest of its sources, as of the first time that it is asked for."""
    return f"{__version__}+{digest()[:8]}"


@cache
def started(at: float) -> str:
    """Return the version of a process that has run since `at` (seconds since 1970), from what its sources are now."""
    try:
        changed = any(file.stat().st_mtime > at for file in PACKAGE.rglob("*.py"))
        return f"{__version__} (its sources have changed since then)" if changed else version()
    except OSError:
        return f"{__version__} (its sources can't be read any more)"


def same(theirs: str) -> bool:
    """Say whether a version is ours: with a digest it is compared with ours, without one only by number."""
    return theirs == (version() if "+" in theirs else __version__)
