"""Plan the addresses that a file leaves out; the same file always gets the same ones (pure)."""

from __future__ import annotations

from binascii import crc32
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

from testbed.language.document import Path
from testbed.nodes.place import Interface
from testbed.units import interface_of

# RFC 1918 and RFC 3849: nothing that a lab's packets could be mistaken for outside of it.
_POOLS = {4: ip_network("10.0.0.0/8"), 6: ip_network("2001:db8::/32")}
_LINK_LOCAL = b"\xfe\x80" + bytes(6)
Net = IPv4Network | IPv6Network


class NoRoom(ValueError):
    """A network has no address left, or the pool has no network; `at` is the end that needs one."""

    def __init__(self, message: str, at: Path) -> None:
        """Take a sentence and the path in the file."""
        super().__init__(message)
        self.at = at


def mac(node: str, ifname: str, taken: set[str]) -> str:
    """Return a locally administered address made from the names, so that other nodes and links do not change it."""
    number = crc32(f"{node}:{ifname}".encode())
    while True:
        raw = f"{number & 0xFFFFFFFF:08x}"
        found = "02:00:" + ":".join(raw[n : n + 2] for n in (0, 2, 4, 6))
        if found not in taken:
            taken.add(found)
            return found
        number += 1


def link_local(address: str) -> str:
    """Return the link-local address of a MAC: modified EUI-64 (RFC 4291 appendix A)."""
    raw = bytes.fromhex(address.replace(":", ""))
    full = bytes((raw[0] ^ 2,)) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return f"{IPv6Address(_LINK_LOCAL + full)}/64"


def given(
    segments: Mapping[int, tuple[Interface, ...]], left_out: set[tuple[str, str]], families: tuple[int, ...]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Give interfaces without stated addresses the next ones of their segment's network, in the order of the file."""
    left_out = {(i.node, i.name) for members in segments.values() for i in members} & left_out
    stated = [interface_of(a) for members in segments.values() for i in members for a in i.addresses]
    found: dict[tuple[str, str], list[str]] = {key: [] for key in left_out}
    for version in families:
        used = [s.network for s in stated if s.version == version]
        take = _allocator(version, used)
        for _, members in sorted(segments.items()):
            wanting = [i for i in members if (i.node, i.name) in left_out]
            own = [interface_of(a) for i in members for a in i.addresses if (":" in a) == (version == 6)]
            # A segment with stated addresses uses up its place in the pool all the same: to state the addresses of
            # one link changes those of no other.
            if own or not wanting:
                with suppress(NoRoom):
                    take(len(members), members[0].at)
            if not wanting:
                continue
            subnet = own[0].network if own else take(len(members), wanting[0].at)
            taken = {int(o.ip) for o in own}
            base = int(subnet.network_address)
            room = subnet.num_addresses - (2 if version == 4 else 1)
            host = 1
            for i in wanting:
                while base + host in taken:
                    host += 1
                if host > room:
                    raise NoRoom(f"{subnet} has no address left for {i.node}:{i.name}", i.at)
                found[i.node, i.name].append(f"{subnet[host]}/{subnet.prefixlen}")
                host += 1
    return {key: tuple(addresses) for key, addresses in found.items()}


def by_name(
    segments: Mapping[int, tuple[Interface, ...]], left_out: set[tuple[str, str]], families: tuple[int, ...]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """Give addresses that follow from the names of the interfaces: other links and hosts do not change them.

    Where two names give the same number, the one that is later in the alphabet takes the next that is free.
    """
    found: dict[tuple[str, str], list[str]] = {}
    order = sorted(segments.values(), key=lambda members: min(map(_name, members)))
    for version in families:
        taken = [interface_of(a).network for members in order for i in members for a in i.addresses]
        used = {n for n in taken if n.version == version}
        for members in order:
            wanting = sorted((i for i in members if (i.node, i.name) in left_out), key=_name)
            if not wanting:
                continue
            own = [interface_of(a) for i in members for a in i.addresses if (":" in a) == (version == 6)]
            subnet = own[0].network if own else _named_network(version, members, used, wanting[0].at)
            used.add(subnet)
            there = {int(o.ip) - int(subnet.network_address) for o in own}
            room = min(subnet.num_addresses - 2, 1 << 16)
            for i in wanting:
                first = crc32(_name(i).encode()) % max(1, room)
                host = next((h for n in range(room) if (h := (first + n) % room + 1) not in there), None)
                if host is None:
                    raise NoRoom(f"{subnet} has no address left for {i.node}:{i.name}", i.at)
                there.add(host)
                found.setdefault((i.node, i.name), []).append(f"{subnet[host]}/{subnet.prefixlen}")
    return {key: tuple(addresses) for key, addresses in found.items()}


def _name(i: Interface) -> str:
    return f"{i.node}:{i.name}"


def _named_network(version: int, members: tuple[Interface, ...], used: set[Net], at: Path) -> Net:
    pool = _POOLS[version]
    bits = 64 if version == 6 else max(8, (len(members) + 1).bit_length())
    count = 1 << (pool.max_prefixlen - pool.prefixlen - bits)
    first = crc32(min(map(_name, members)).encode()) % count
    for n in range(min(count, 1 << 16)):
        base = int(pool.network_address) + ((first + n) % count << bits)
        found: Net = ip_network((base, pool.max_prefixlen - bits))
        if base != int(pool.network_address) and not any(found.overlaps(u) for u in used):
            return found
    raise NoRoom(f"the pool {pool} has no network left: give addresses", at)


def _allocator(version: int, used: list[Net]) -> Callable[[int, Path], Net]:
    """Return a function from a number of members to the next free network of the pool.

    Each IPv4 network begins at a /24 of its own for readability: 10.0.3.0/30 is the third segment.
    """
    pool = _POOLS[version]
    stride = 8 if version == 4 else 64
    ahead = sorted({(int(u.network_address), int(u.broadcast_address)) for u in used}, reverse=True)
    cursor = int(pool.network_address) + (1 << stride)

    def take(members: int, at: Path) -> Net:
        nonlocal cursor
        bits = 64 if version == 6 else max(2, (members + 1).bit_length())
        size = 1 << max(stride, bits)
        while True:
            cursor = -(-cursor // size) * size
            if not ahead or ahead[-1][0] >= cursor + size:
                break  # the next network in use is further on
            cursor = max(cursor, ahead.pop()[1] + 1)
        if cursor + size - 1 > int(pool.broadcast_address):
            raise NoRoom(f"the pool {pool} has no network left: give addresses", at)
        found = ip_network((cursor, pool.max_prefixlen - bits))
        cursor += size
        return found

    return take
