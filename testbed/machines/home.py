"""Where this user's files are (XDG Base Directory Specification)."""

from __future__ import annotations

import os
from pathlib import Path

from testbed.errors import InputError


def cache() -> Path:
    """Return the folder for what can be made again."""
    return _folder("XDG_CACHE_HOME", "~/.cache")


def config() -> Path:
    """Return the folder for the user's settings."""
    return _folder("XDG_CONFIG_HOME", "~/.config")


def _folder(variable: str, default: str) -> Path:
    """Return testbed's folder below the one that a variable names; a relative path there is ignored."""
    named = os.environ.get(variable, "")
    found = named if named.startswith("/") else os.path.expanduser(default)
    if not found.startswith("/"):
        raise InputError(f"there is no home directory: set HOME, or {variable}, to an absolute path")
    return Path(found) / "testbed"
