"""The steps of a flow of so many bytes, which testbed sends itself: iperf3 -n drops what is still on its way."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.drivers.facts import Listening
from testbed.steps import START, Spawn, Step, Wait

LONGEST = 60.0  # seconds that a transfer may take when the file does not say


def steps(
    name: str, ends: tuple[str, str], words: Mapping[str, object], where: Mapping[str, object], at: float, within: float
) -> tuple[list[Step], list[Step]]:
    """Return the server with its wait, and the client.

    `words` are of both, `where` of the client; `sends` has the bytes of the end that sends, "client" or "server".
    """
    source, target = ends
    total, sender = words["bytes"], words["sender"]
    both = {k: v for k, v in words.items() if k not in ("bytes", "sender") and v is not None}

    def argv(end: str, node: str, more: Mapping[str, object]) -> tuple[str, ...]:
        own = {**both, **more, "sends": total if sender == end else 0, "out": f"{node}/{name}.{end}.json"}
        return ("testbed.transfer", *(f"{k}={v}" for k, v in own.items() if v is not None))

    server = Spawn(target, f"{name}.server", argv("server", target, {}), may_end=True, forked=True)
    client = Spawn(source, f"{name}.client", argv("client", source, where), at=at, within=within, forked=True)
    port = words["port"]
    assert isinstance(port, int)
    return [server, Wait(target, Listening(port), START, server.name)], [client]
