"""Find the sandboxes of this user and connect to them: a sandbox's name is an abstract unix socket."""

from __future__ import annotations

import os
import re
import select
import socket
from io import FileIO

from testbed.errors import LabError
from testbed.linux.unix import dial, peer

FAMILY, GUESTS = "testbed", "testbed-guest"  # whose names these are: labs', and guests' of microVMs
WHAT = {FAMILY: "lab", GUESTS: "guest"}
# Valid names of labs and guests; others could change the state of a terminal that shows them.
NAME = re.compile(r"[a-z][a-z0-9-]*")
ANSWERS = 5.0  # seconds for a holder to accept a connection, and to answer a request that takes no work


class SilentError(LabError):
    """A holder does not answer: it was stopped, or hangs in the kernel."""


def address(name: str, family: str = FAMILY) -> str:
    """Return the abstract socket address of a lab of this user, or of another family of sandboxes."""
    return f"\0{_prefix(family)}{name}"


def _prefix(family: str) -> str:
    return f"{family}/{os.geteuid()}/"


def names(family: str = FAMILY) -> list[str]:
    """Return the names of this user's labs that are up or coming up, without names that other users have bound."""
    from testbed.linux.unix_diag import owned  # `testbed exec` finds its lab by connecting

    found = (name for name, uid in owned(_prefix(family)) if uid == os.geteuid())
    return sorted({name for name in found if NAME.fullmatch(name)})


def owner(name: str, family: str = FAMILY) -> int | None:
    """Return the user who has bound the name of a lab, None if nobody has."""
    from testbed.linux.unix_diag import owned

    return next((uid for found, uid in owned(_prefix(family)) if found == name), None)


def listens(name: str, family: str = FAMILY) -> bool:
    """Return whether a sandbox of this user listens at a name, without waiting for one that does not accept."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.setblocking(False)
        try:
            connection.connect(address(name, family))
        except OSError:
            return False
        return peer(connection).uid == os.geteuid()


def call(name: str, family: str = FAMILY, patience: float = ANSWERS) -> socket.socket:
    """Connect to a sandbox of this user; raise LabError if there is none, or if it does not accept.

    Another user who has bound its name learns nothing, and cannot delay us by more than `patience`.
    """
    what = WHAT[family]
    try:
        connection = dial(address(name, family), patience)
    except TimeoutError as e:
        if (uid := owner(name, family)) not in (None, os.geteuid()):
            raise LabError(foreign(what, name, uid)) from e
        raise SilentError(f"{what} {name}: it takes no connection (is its holder stopped?)") from e
    except OSError as e:
        if (uid := owner(name, family)) not in (None, os.geteuid()):
            raise LabError(foreign(what, name, uid)) from e
        if uid is not None:
            raise LabError(f"{what} {name}: it is coming up or going down at this moment; try again") from e
        up = ", ".join(names(family)) or "none"
        made = "; `testbed up` makes one" if family == FAMILY else ""
        raise LabError(f"{what} {name}: no such {what} is up ({what}s of this user: {up}){made}") from e
    if (uid := peer(connection).uid) != os.geteuid():
        connection.close()
        raise LabError(foreign(what, name, uid))
    return connection


def holder(name: str, connection: socket.socket) -> tuple[int, FileIO]:
    """Return the process ID and a pidfd of PID 1 of the sandbox at the other end of a connection."""
    number = peer(connection).pid
    try:
        life = FileIO(os.pidfd_open(number))
    except OSError as e:  # ESRCH, or EINVAL if its number in this namespace is 0
        raise LabError(f"lab {name}: its holder ended, or belongs to another PID namespace") from e
    # As long as the connection stands, no other process can have taken the number.
    waiter = select.poll()
    waiter.register(connection, 0)
    if waiter.poll(0):
        raise LabError(ended(name))
    return number, life


def ended(name: str) -> str:
    """Return the error for a lab whose holder has ended."""
    return f"lab {name}: its holder process ended (killed, or `testbed down`)"


def silent(name: str, number: int) -> str:
    """Return the error for a holder that does not answer, with what to do."""
    return (
        f"lab {name}: its holder, process {number}, does not answer (is it stopped?); "
        f"`testbed down {name}` ends it all the same"
    )


def foreign(what: str, name: str, uid: int | None) -> str:
    """Return the error for a name that another user has bound."""
    return (
        f"{what} {name}: another user of this machine (uid {uid}) uses this name; "
        "choose another name (`--name`), or ask the administrator to end that process"
    )
