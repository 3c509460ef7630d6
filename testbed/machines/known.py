"""The machines that a user has named: `testbed machine add NAME ssh://user@host`, kept in one small file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from testbed.errors import InputError

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
RESERVED = ("auto", "here", "microvm")


@dataclass(frozen=True, slots=True)
class Known:
    """A host that ssh reaches and that has this program; `options` are ssh's own (ssh_config(5), Key=Value)."""

    name: str
    url: str
    program: str
    options: tuple[str, ...] = ()

    def words(self) -> tuple[str, ...]:
        """Return the words of ssh(1) before a command: no question is asked, and a dead host is noticed in 10 s."""
        url = urlsplit(self.url)
        options = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=2")
        words = [w for option in (*self.options, *options) for w in ("-o", option)]
        port = ("-p", str(url.port)) if url.port else ()
        host = url.hostname or ""
        return ("ssh", *words, *port, f"{url.username}@{host}" if url.username else host)


def checked(name: str, url: str) -> None:
    """Raise InputError when this is no name of a machine, or no address that ssh can take."""
    if not _NAME.fullmatch(name) or name in RESERVED:
        raise InputError(
            f"{name!r} is no name for a machine: lower-case letters, digits and -, a letter first; "
            f"and {', '.join(RESERVED)} are taken"
        )
    try:
        found = urlsplit(url)
        port = found.port
    except ValueError as e:
        raise InputError(f"{url!r} is no address: {e}") from e
    # A host that begins with a dash would be an option of ssh.
    bad = not found.hostname or found.hostname.startswith("-") or (found.username or "").startswith("-")
    if found.scheme != "ssh" or bad or found.path not in ("", "/") or found.query or found.password or port == 0:
        raise InputError(f"{url!r} is no address of a machine: write ssh://user@host or ssh://user@host:port")


def machines() -> dict[str, Known]:
    """Return the machines by name; InputError when the file is not ours."""
    try:
        rows = json.loads(_file().read_text())
        return {r["name"]: Known(r["name"], r["url"], r["program"], tuple(r["options"])) for r in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{_file()} is no list of machines ({e}): mend or remove it") from e


def find(name: str) -> Known:
    """Return a machine by its name; InputError that lists those there are."""
    there = machines()
    if name not in there:
        names = ", ".join((*RESERVED, *there))
        raise InputError(
            f"--machine: there is no machine {name!r} (machines: {names}); `testbed machine add` makes one known"
        )
    return there[name]


def keep(there: Mapping[str, Known]) -> None:
    """Write the list, whole or not at all."""
    file = _file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = file.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps([asdict(k) for k in there.values()], indent=1) + "\n")
        whole.rename(file)
    except OSError as e:
        raise InputError(f"the machines can't be written down: {e.filename}: {e.strerror}") from e


def _file() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "testbed" / "machines.json"
