"""Inputs that were found to be taken wrongly: kept as files, each tried again by every run of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent / "found"


def keep(kind: str, what: str, data: bytes) -> Path:
    """Keep an input of a kind for `what` it was given to, and return its file."""
    path = FOLDER / kind / f"{what.replace(' ', '-')}.{sha256(data).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def kept(kind: str) -> Iterator[tuple[str, bytes, Path]]:
    """Yield every kept input of a kind, with what it was given to."""
    for path in sorted((FOLDER / kind).glob("*.*")):
        yield path.name.partition(".")[0].replace("-", " "), path.read_bytes(), path
