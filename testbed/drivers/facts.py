"""Facts about processes that a Wait may await; each is observed in the kernel or on disk, by `testbed.lab.probes`."""

from __future__ import annotations

from msgspec import Struct


class Listening(Struct, frozen=True, tag=True):
    """A TCP (or MPTCP) server listens on a port."""

    port: int

    def __str__(self) -> str:
        return f"listening on port {self.port}"


class Capturing(Struct, frozen=True, tag=True):
    """A packet socket takes this interface's packets, and dumpcap says in its log that it writes them."""

    ifname: str
    log: str

    def __str__(self) -> str:
        return f"capturing {self.ifname}"


class FileHas(Struct, frozen=True, tag=True):
    """A file of the lab's folder exists and holds something."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} has content"
