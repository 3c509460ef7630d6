"""Facts about processes that a Wait may wait for; `testbed.lab.probes` observes them in the kernel or on disk."""

from __future__ import annotations

from msgspec import Struct


class Listening(Struct, frozen=True, tag=True):
    """A TCP (or MPTCP) server listens on a port."""

    port: int

    def __str__(self) -> str:
        return f"listening on port {self.port}"


class Capturing(Struct, frozen=True, tag=True):
    """A packet socket receives this interface's packets, and dumpcap's log says that it writes them."""

    ifname: str
    log: str

    def __str__(self) -> str:
        return f"capturing {self.ifname}"


class FileHas(Struct, frozen=True, tag=True):
    """A file of the lab's folder exists and is not empty."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} has content"
