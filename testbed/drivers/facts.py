"""Facts about processes that a Wait may wait for; `testbed.lab.probes` observes them in the kernel or on disk."""

from __future__ import annotations

from testbed.steps import Probe

_LISTEN = "0A"  # include/net/tcp_states.h


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
