"""What of a running lab is not as its steps made it: commands in its nodes may have changed it since (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_interface

from msgspec import Struct

from testbed.drivers.link import AddressAdd, LinkSet, PortAdd, VethAdd
from testbed.drivers.route import RouteAdd
from testbed.drivers.tc import Qdisc, Shaper
from testbed.lab.look import Seen
from testbed.steps import Configure, Run, Step


class Drift(Struct, frozen=True):
    """Performed steps that no longer hold, and steps that mend what no step of the lab says by itself."""

    lost: tuple[Step, ...]
    mend: tuple[Step, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lost or self.mend)

    def steps(self) -> tuple[Step, ...]:
        """Return what has to be performed again."""
        return (*self.mend, *self.lost)


def drift(done: Sequence[Step], seen: Mapping[str, Sequence[Seen]]) -> Drift:
    """Compare the steps of a lab with what the kernel says of the interfaces of each node."""
    own = {s.node for s in done if isinstance(s, Run)}  # where commands of the file may have changed it on purpose
    by_name = {(node, i.name): i for node, found in seen.items() if node not in own for i in found}
    ends = list(dict.fromkeys(_ends(done)))
    down = {end for end in ends if end in by_name and by_name[end].state == "down"}
    requests = [(s, s.node, s.request) for s in done if isinstance(s, Configure)]
    bare = set(_unshaped(requests, by_name))
    lost: list[Step] = []
    raised: set[tuple[str, str]] = set()
    gone = set(down)  # interfaces whose routes are lost
    for step, node, request in requests:
        if isinstance(request, LinkSet) and (node, request.name) in by_name:
            there = by_name[node, request.name]
            if request.up and (node, request.name) in down:
                raised.add((node, request.name))
                lost.append(step)
            elif request.mtu is not None and there.mtu != request.mtu:
                lost.append(step)
        elif isinstance(request, AddressAdd) and (node, request.dev) in by_name:
            if ip_interface(request.address) not in map(ip_interface, by_name[node, request.dev].addresses):
                lost.append(step)
                gone.add((node, request.dev))  # with the last address of a network, the kernel drops routes by it
        elif isinstance(request, RouteAdd):
            if any((node, hop.dev) in gone for hop in request.hops()):
                lost.append(step)
        elif isinstance(request, Shaper) and (node, request.dev) in bare:
            lost.append(step)
    mend = tuple(Configure(node, LinkSet(name, up=True)) for node, name in ends if (node, name) in down - raised)
    return Drift(tuple(lost), mend)


def _ends(done: Sequence[Step]) -> Iterator[tuple[str, str]]:
    """Yield both ends of every link: they are all up in a lab."""
    for step in done:
        if isinstance(step, Configure) and isinstance(pair := step.request, VethAdd):
            yield from ((step.node, pair.name), (pair.peer_node, pair.peer_name))
        elif isinstance(step, Configure) and isinstance(port := step.request, PortAdd):
            yield step.node, port.name


def _unshaped(
    requests: Sequence[tuple[Step, str, object]], by_name: Mapping[tuple[str, str], Seen]
) -> Iterator[tuple[str, str]]:
    """Yield the interfaces that lack a queue discipline of their steps."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for _, node, request in requests:
        if isinstance(request, Qdisc):
            kinds.setdefault((node, request.dev), []).append(request.kind)
    yield from (key for key, found in kinds.items() if key in by_name and not set(found) <= set(by_name[key].qdisc))
