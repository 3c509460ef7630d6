"""Facts about processes that a Wait may wait for; `testbed.lab.probes` observes them in the kernel or on disk."""

from __future__ import annotations

from testbed.steps import Probe

_LISTEN, _CLOSE = "0A", "07"  # include/net/tcp_states.h


class Listening(Probe, frozen=True):
    """A TCP (or MPTCP) server listens on a port."""

    port: int

    def __str__(self) -> str:
        return f"listening on port {self.port}"

    def files(self) -> tuple[str, ...]:
        """Return the tables of TCP sockets."""
        return ("/proc/self/net/tcp", "/proc/self/net/tcp6")

    def lacking(self, *texts: str) -> str:
        """Return which listener is missing, "" when there is one."""
        rows = [row.split() for text in texts for row in text.splitlines()[1:]]
        ports = {row[1].rpartition(":")[2] for row in rows if row[3] == _LISTEN}
        return "" if f"{self.port:04X}" in ports else f"no listener on {self.port}"


class Capturing(Probe, frozen=True):
    """A packet socket receives this interface's packets, and dumpcap's log says that it writes them."""

    ifname: str
    log: str

    def __str__(self) -> str:
        return f"capturing {self.ifname}"


class FileHas(Probe, frozen=True):
    """A file of the lab's folder exists and is not empty."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} has content"


class Serving(Probe, frozen=True):
    """A TCP (or MPTCP) server listens on a port, or a UDP socket is bound to it."""

    port: int

    def __str__(self) -> str:
        return f"serving on port {self.port}"

    def files(self) -> tuple[str, ...]:
        """Return the tables of sockets."""
        return tuple(f"/proc/self/net/{name}" for name in ("tcp", "tcp6", "udp", "udp6"))

    def lacking(self, *texts: str) -> str:
        """Return which socket is missing, "" when there is one."""
        rows = [row.split() for text in texts for row in text.splitlines()[1:]]
        # A UDP socket that is not connected is in the state TCP_CLOSE.
        ports = {row[1].rpartition(":")[2] for row in rows if row[3] in (_LISTEN, _CLOSE)}
        return "" if f"{self.port:04X}" in ports else f"nothing serves on port {self.port}"


class LogSays(Probe, frozen=True):
    """A line at the end of a file of the lab's folder matches an expression."""

    path: str
    expression: str

    def __str__(self) -> str:
        return f"{self.path} has a line that matches {self.expression!r}"
