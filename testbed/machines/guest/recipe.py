"""The recipe of a guest's image: its files (machines/provision), their digest, and the lock of package versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

FOLDER = Path(__file__).parents[1] / "provision"
LOCK = "image.lock"
SUITE = "forky"
_HEADINGS = ("in the image", "where its programs are built")


class Package(Struct, frozen=True, order=True):
    """A Debian package at a version."""

    name: str
    version: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} {self.architecture}"


class Lock(Struct, frozen=True):
    """Every package in an image, and every package that it was built with."""

    packages: tuple[Package, ...] = ()
    build: tuple[Package, ...] = ()

    def __str__(self) -> str:
        rows = [f"# Debian {SUITE}; written by `testbed image build --update-lock`, obeyed by `--locked`"]
        for heading, packages in zip(_HEADINGS, (self.packages, self.build), strict=True):
            rows += [f"# {heading}", *map(str, sorted(packages))]
        return "\n".join(rows) + "\n"


def parse_packages(text: str) -> tuple[Package, ...]:
    """Read `name version architecture` lines; `#` begins a comment."""
    rows = [row.split() for row in text.splitlines() if row and not row.startswith("#")]
    return tuple(sorted(Package(*row) for row in rows))


def parse_lock(text: str) -> Lock:
    """Read what `str(Lock)` wrote."""
    image, _, build = text.partition(f"# {_HEADINGS[1]}\n")
    return Lock(parse_packages(image), parse_packages(build))


def lock(folder: Path = FOLDER) -> Lock:
    """Return the lock of the recipe, an empty one if it has none yet."""
    file = folder / LOCK
    return parse_lock(file.read_text()) if file.exists() else Lock()


def modules(folder: Path = FOLDER) -> tuple[str, ...]:
    """Return the modules that a guest keeps, as regular expressions for their paths below kernel/."""
    return tuple(row for row in (folder / "modules.txt").read_text().splitlines() if not row.startswith("#"))


def digest(folder: Path = FOLDER) -> str:
    """Return the digest of the recipe and its lock, by which the image is named."""
    summed = hashlib.sha256()
    for file in sorted(f for f in folder.iterdir() if f.is_file()):
        summed.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return summed.hexdigest()[:12]


def difference(wanted: Iterable[Package], found: Iterable[Package]) -> tuple[str, ...]:
    """Return a sentence for each package in which two lists differ."""
    had, has = {p.name: p for p in wanted}, {p.name: p for p in found}
    rows = [
        f"{n}: {had[n].version} is locked, {has[n].version} came" for n in had.keys() & has.keys() if had[n] != has[n]
    ]
    rows += [f"{n}: {had[n].version} is locked, none came" for n in had.keys() - has.keys()]
    rows += [f"{n}: it is not in the lock, {has[n].version} came" for n in has.keys() - had.keys()]
    return tuple(sorted(rows))
