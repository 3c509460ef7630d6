"""What an end of a transfer is asked to do: the words of its command line."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, convert


class Asked(Struct, frozen=True, kw_only=True):
    """One end of a transfer; sizes are bytes, times are seconds, and 0 or "" is the kernel's or none.

    With `connect` it is the client, which sends from the address `bind` (`ADDRESS%INTERFACE` to leave by that
    interface) and the ports from `source_port` on. It sends if it `sends`, and its peer if that `receives`: so many
    `bytes`, or for `seconds`. With a `request` the client asks, again `every` so often, and the server answers with a
    `response`. What is on the way after `seconds` may take `patience` longer.
    """

    out: str
    port: int
    connect: str = ""
    family: int = 4
    mptcp: bool = False
    connections: int = 1
    sends: bool = False
    receives: bool = False
    bytes: int = 0
    seconds: float = 60.0
    patience: float = 20.0
    rate: float = 0.0  # bytes a second, all connections together
    request: int = 0
    response: int = 0
    every: float = 0.0
    bind: str = ""
    source_port: int = 0
    backlog: int = 1024
    linger: int = -1
    congestion: str = ""
    window: int = 0
    mss: int = 0
    interval: float = 0.1

    def share(self, n: int) -> int:
        """Return how many of the bytes are those of a connection."""
        share, rest = divmod(self.bytes, self.connections)
        return share + (n < rest)


def read(words: Sequence[str]) -> Asked:
    """Read a command line: words KEY=VALUE."""
    return convert(dict(word.split("=", 1) for word in words), Asked, strict=False)
