"""The machines that a user has added (`testbed machine add NAME ssh://user@host`), in one small file."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from testbed.errors import InputError, LabError
from testbed.machines import home, trusted

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
# As ssh(1) takes it. A user or a host that begins with a dash is none, and no path or password is.
_URL = re.compile(
    r"ssh://([^-@:/?#\s][^@:/?#\s]*@)?([^-@:/?#\s\[\]][^@:/?#\s\[\]]*|\[[0-9A-Fa-f:.]+(%\w+)?\])(:\d{1,5})?/?"
)
_PATIENCE = ("ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=2")
RESERVED = ("auto", "here", "microvm")


class Known(Struct, frozen=True):
    """A host that ssh reaches and that has testbed; `options` are those of ssh_config(5), as Key=Value."""

    name: str
    url: str
    program: str
    options: tuple[str, ...] = ()

    def words(self) -> tuple[str, ...]:
        """Return the words of ssh(1) before a command: it asks nothing, and notices a dead host in 15 s."""
        # A connection of its own, and not one that others share: the command there ends when it does.
        options = (*self.options, "BatchMode=yes", "ControlPath=none", *_PATIENCE)
        return ("ssh", *(w for option in options for w in ("-o", option)), self.url)


def checked(name: str, url: str) -> None:
    """Raise InputError if this is not a valid name of a machine, or not an address that ssh accepts."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise InputError(
            f"{name!r} is not a valid name for a machine: lower-case letters, digits and -, a letter first; "
            f"and {', '.join(RESERVED)} are taken"
        )
    if not _URL.fullmatch(url):
        raise InputError(f"{url!r} is not a valid address of a machine: write ssh://user@host or ssh://user@host:port")


def machines() -> dict[str, Known]:
    """Return the machines by name; InputError if the file belongs to another user, as it decides what ssh runs."""
    try:
        rows = json.loads(trusted.read(_file()))
        return {r["name"]: Known(r["name"], r["url"], r["program"], tuple(r["options"])) for r in rows}
    except FileNotFoundError:
        return {}
    except LabError as e:
        raise InputError(f"{e}") from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{_file()} is not a list of machines ({e}): mend or remove it") from e


def find(name: str) -> Known:
    """Return a machine by its name; InputError lists the known ones."""
    there = machines()
    if name not in there:
        names = ", ".join((*RESERVED, *there))
        raise InputError(f"there is no machine {name!r} (machines: {names}); `testbed machine add` makes one known")
    return there[name]


def add(made: Known) -> None:
    """Add a machine; InputError if another one has its name."""
    if _change(lambda there: {**there, made.name: there.get(made.name, made)})[made.name] != made:
        raise InputError(
            f"machine {made.name}: another one has this name (`testbed machine ls`); "
            f"`testbed machine rm {made.name}` forgets it"
        )


def remove(name: str) -> None:
    """Forget a machine."""
    find(name)
    _change(lambda there: {n: k for n, k in there.items() if n != name})


def _change(change: Callable[[Mapping[str, Known]], dict[str, Known]]) -> dict[str, Known]:
    """Change the list, one change at a time, write it atomically, and return it."""
    file = _file()
    try:
        lock = trusted.opened(trusted.folder(file.parent))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            there = change(machines())
            whole = file.with_suffix(".new")
            trusted.write(whole, json.dumps([asdict(k) for k in there.values()], indent=1) + "\n")
            whole.rename(file)
        finally:
            os.close(lock)
    except LabError as e:
        raise InputError(f"{e}") from e
    except OSError as e:
        raise InputError(f"the machines can't be written down: {e.filename or file}: {e.strerror}") from e
    return there


def _file() -> Path:
    return home.config() / "machines.json"
