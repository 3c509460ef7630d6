"""Why an MPTCP connection would stay on one path although its hosts have several (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from testbed.drivers.mptcp import EndpointAdd
from testbed.nodes.endpoint import unmapped
from testbed.nodes.endpoint import version as family
from testbed.nodes.place import Place

Warned = tuple[str, str, str]  # the name of the warning, a sentence, and what to do


class Flow(Struct, frozen=True):
    """A connection from a client to the address `to` of a server.

    `out` has the interface by which the client's routes lead to each address of the server, and `leads` the pairs of an
    interface of the client and an address of the server that it leads to by itself.
    """

    client: Place
    server: Place
    to: str
    out: Mapping[str, str]
    leads: frozenset[tuple[str, str]]


class Side(Struct, frozen=True):
    """What the path manager of one host may do: endpoints that open subflows, announced ones, and its limits."""

    opening: Sequence[EndpointAdd]
    announced: Sequence[EndpointAdd]
    subflows: int
    accepted: int


def one_path(flow: Flow, client: Side, server: Side) -> Iterator[Warned]:
    """Yield why there would be one path only."""
    version = 6 if ":" in flow.to else 4
    first = flow.out.get(flow.to, "")
    mine = [i for i in flow.client.interfaces if i.host(version) and not i.port]
    theirs = [i for i in flow.server.interfaces if i.host(version) and not i.port]
    if not first or max(len(mine), len(theirs)) < 2:
        return
    a, b = flow.client.node, flow.server.node
    spare = next((i.name for i in mine if i.name != first), "")
    opening = [e for e in client.opening if family(e.address) == version and e.dev != first]
    announced = [e for e in server.announced if family(e.address) == version and unmapped(e.address) != flow.to]
    give = f"give {a} `mptcp: {{endpoints: [{{interface: {spare}}}]}}`" if spare else ""
    way = f"give {a} an endpoint there, such as `{{interface: {spare}, flags: [laminar]}}` (Linux 6.18) or `[subflow]`"
    if not opening and not announced:
        if server.opening:
            why = f"endpoints of {b} open subflows only for connections that {b} opens, and {a} opens this one"
            yield "mptcp-one-path", why, give or f"flag an endpoint of {b} with `signal`"
        elif spare:
            yield "mptcp-one-path", f"no endpoint opens a second subflow: all goes over {a}:{first}", give
    elif not client.subflows or not server.subflows:
        who = a if not client.subflows else b
        cure = "give it 1 or more, or leave `limits` out"
        yield "mptcp-one-path", f"`limits: {{subflows: 0}}` of {who} allows the first subflow only", cure
    elif announced and not opening and not client.accepted:
        why = f"{b} announces {announced[0].address}, but {a} has `limits: {{add_addr_accepted: 0}}`"
        yield "mptcp-one-path", why, "give it 1 or more, or leave `limits` out"
    elif announced and not opening and spare and {flow.out.get(unmapped(e.address)) for e in announced} == {first}:
        why = f"{a} joins {announced[0].address}, which {b} announces, by {a}:{first}, as the first subflow"
        yield "mptcp-one-path", f"{why}: no endpoint of {a} is on another interface", way
    for e in opening if not announced else ():
        if (e.dev, flow.to) not in flow.leads:
            end = next((i.name for i in theirs if flow.to in i.hosts()), "")
            why = f"the subflow from {a}:{e.dev} joins {flow.to} ({b}:{end}), to which {e.dev} does not lead"
            yield "mptcp-unreachable", why, f"let {b} announce an address that it leads to: `flags: [signal]`"
