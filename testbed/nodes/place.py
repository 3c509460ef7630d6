"""The place of a role: its node with the planned interfaces. Roles know nothing else of the topology."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_interface
from typing import TypeAlias

from msgspec import Struct

# "veth" is an end of a link, "wlan" a radio's, "bridge" a switch's own; a role's steps make one of any other kind.
Kind: TypeAlias = str
MADE: Kind = "made"  # by the node's `commands`


class Interface(Struct, frozen=True):
    """An interface: one end of a link, or one that a role adds; addresses are `address/length`, none link-local.

    `at` is the path in the file that it comes from: an end of a link, or a role of a node. `link` has the words by
    which the file may name its link: its name, and both ends.
    """

    node: str
    name: str
    mac: str
    mtu: int
    at: tuple[str | int, ...]
    segment: int
    addresses: tuple[str, ...]
    port: bool = False
    kind: Kind = "veth"
    link: tuple[str, ...] = ()

    def hosts(self) -> tuple[str, ...]:
        """Return the addresses without their prefix length."""
        return tuple(a.partition("/")[0] for a in self.addresses)

    def host(self, version: int) -> str:
        """Return the first address of a family (4 or 6), "" if it has none."""
        return next((h for h in self.hosts() if (":" in h) == (version == 6)), "")

    def network(self, version: int) -> str:
        """Return the network of the first address of a family, "" if it has none."""
        found = next((a for a in self.addresses if (":" in a) == (version == 6)), "")
        return str(ip_interface(found).network) if found else ""


class Bss(Struct, frozen=True):
    """What an access point offers: its links (link_id, centre frequency in MHz), their addresses, and how to join.

    With `mlo` it is an AP MLD (IEEE 802.11be), whose interface has the MLD address, which no link has. `moves` are the
    frequencies (link_id, MHz) that events move links to, `stations` how many the file has with its SSID.
    """

    node: str
    ifname: str
    ssid: str
    country: str
    mlo: bool
    freqs: tuple[tuple[int, int], ...]
    bssids: tuple[str, ...]
    akm: str
    pairwise: str
    password: str
    pmf: bool
    beacon_protection: bool
    moves: tuple[tuple[int, int], ...] = ()
    stations: int = 0


class Tunnel(Struct, frozen=True):
    """A node's end of AMT tunnels: its pseudo-interface `name`, and the interface and address that carry the tunnels.

    `discovery` is the relay's address, "" on the relay itself.
    """

    node: str
    name: str
    dev: str
    local: str
    discovery: str = ""


class Place(Struct, frozen=True):
    """A node: its name, its interfaces in the order of the file, the topology's IP versions (4, 6), and all BSSs.

    `bridge` is the name of the node's switch, "" without one, and `forwards` says whether it routes; `tunnels`
    are the node's ends of AMT tunnels; `sysctl` has the kernel parameters that the file sets there, and `commands` the
    programs that it runs. Without `routed` the plan makes no routes.
    """

    node: str
    interfaces: tuple[Interface, ...]
    families: tuple[int, ...]
    air: tuple[Bss, ...] = ()
    bridge: str = ""
    tunnels: tuple[Tunnel, ...] = ()
    sysctl: Mapping[str, str | int] = {}
    commands: tuple[tuple[str, ...], ...] = ()
    forwards: bool = False
    routed: bool = True

    def tunnel(self, name: str) -> Tunnel | None:
        """Return the node's end of AMT tunnels by the name of its pseudo-interface."""
        return next((t for t in self.tunnels if t.name == name), None)

    def interface(self, name: str) -> Interface | None:
        """Return an interface by name."""
        return next((i for i in self.interfaces if i.name == name), None)

    def lacks(self, name: str) -> str:
        """Return a sentence that names the missing interface and the existing ones."""
        names = ", ".join(i.name for i in self.interfaces) or "none: no link ends there"
        cure = "; if its `commands` make it, name it under the node's `interfaces`" if self.commands else ""
        return f"{self.node} has no interface {name!r} (it has {names}{cure})"


def misnamed(name: str) -> str:
    """Return what is wrong with the name of an interface (net/core/dev.c: dev_valid_name), "" if nothing is."""
    if len(name.encode()) > 15:
        return f"the interface name {name!r} has {len(name.encode())} bytes, but Linux takes at most 15"
    if name in ("lo", "all", "default"):
        return f"{name!r} is not available as the name of an interface: the kernel uses it itself"
    if name in ("", ".", "..") or re.search(r"[/:\s%]", name) or not name.isprintable():
        return f"{name!r} is not a valid interface name: use 1 to 15 characters without spaces, / : and %"
    if "#" in name:
        return f"{name!r} is not a valid interface name: # would start a comment in the lab's /etc/hosts"
    return ""


def named(name: str, place: Place, cure: str) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what is wrong with the name of an interface that a role adds; `cure` says what to do about a clash."""
    if problem := misnamed(name):
        yield ("name",), problem
    if sum(i.name == name for i in place.interfaces) > 1:
        yield ("name",), f"{place.node} already has an interface {name}: {cure}"
