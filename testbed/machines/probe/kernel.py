"""Probe the kernel for features by using them, in a scratch namespace that ends with its only process.

Modules that a request names are loaded by the kernel as for any user; nothing else changes outside.
Sources: include/uapi/linux/pkt_sched.h, amt.h, mroute.h, mroute6.h, if_tun.h, mptcp_pm.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from testbed import features
from testbed.drivers import amt, mptcp, nftables, tc
from testbed.drivers.amt import AmtAdd
from testbed.drivers.link import CREATE, BridgeAdd, VethAdd
from testbed.features import Feature
from testbed.linux import netlink, uapi, wire
from testbed.linux.inet_diag import mptcp_sockets
from testbed.linux.wire import Message
from testbed.machines.probe import programs, radios, unheard

_TUNSETIFF, _IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0001, 0x0002, 0x1000  # if_tun.h
_IFLA_LINK, _VLAN_ID = 5, 1  # if_link.h: IFLA_LINK, IFLA_VLAN_ID
_MRT_INIT = 200  # mroute.h; MRT6_INIT of mroute6.h is the same


def ask(feature: Feature) -> str:
    """Use a feature of this kernel and return what was seen; OSError or LabError if it is missing."""
    if feature.name.startswith(features.MPTCP_SCHEDULER.name):
        return _scheduler(feature)
    if feature.name.startswith(features.CONGESTION):
        return _congestion(feature.name.removeprefix(features.CONGESTION))
    for beginning, probe in ((features.MPTCP_LIMITS, _limits), (features.MPTCP_ENDPOINTS, _endpoints)):
        if feature.name.startswith(beginning):
            return probe(int(feature.name.removeprefix(beginning)))
    return _PROBES[feature.name]()


class _Scratch(Struct, frozen=True):
    """The scratch namespace, as requests need it for their encoding."""

    def index(self, ifname: str) -> int:
        with netlink.connect(wire.NETLINK_ROUTE) as sock:
            return dict(netlink.links(sock))[ifname]

    def claim(self, ifname: str, node: str | None = None) -> int:
        return 0  # the kernel chooses

    def namespace(self, node: str) -> int:
        return os.open("/proc/self/ns/net", os.O_RDONLY)

    def radio(self, name: str) -> str:
        return name

    def wiphy(self, radio: str) -> int:
        raise OSError(errno.ENODEV, f"there is no radio {radio}")


def _accepted(message: Message, what: str) -> str:
    with netlink.connect(wire.NETLINK_ROUTE) as sock:
        refused = netlink.transact(sock, [message])
    if refused:
        raise OSError(refused[0].errno, f"the kernel refuses {what}: {refused[0]}")
    return f"the kernel accepted {what}"


def _qdisc(kind: str) -> Callable[[], str]:
    def check() -> str:
        special = {"netem": tc.Shape(delay=0.001), "tbf": tc.Shape(rate=10**6)}
        if kind == "htb":
            root = tc.Qdisc("lo", kind, 0x10000, tc.ROOT, tc.Htb())
        elif kind == "plug":
            root = tc.gate("lo", closed=True)
        else:
            root = tc.shape("lo", special.get(kind, tc.Shape(queue=kind, limit=10000)))[0]
        known = _accepted(root.encode(_Scratch()), f"qdisc {kind}")
        _accepted(tc.QdiscDel(root).encode(_Scratch()), f"the end of qdisc {kind}")  # the next kind has its handle
        return known

    return check


def _pair(first: str, second: str) -> str:
    pair = VethAdd(first, "02:00:00:00:00:01", "probe", second, "02:00:00:00:00:02")
    return _accepted(pair.encode(_Scratch()), "a veth pair")


def _bridge() -> str:
    return _accepted(BridgeAdd("probe-br", "02:00:00:00:00:03").encode(_Scratch()), "a bridge")


def _vlan() -> str:
    """Make a VLAN interface on a veth: the loopback takes none."""
    _pair("probe-v0", "probe-v1")
    kind = wire.text(uapi.IFLA_INFO_KIND, "vlan") + wire.nest(uapi.IFLA_INFO_DATA, wire.attr(_VLAN_ID, b"\x03\x00"))
    body = uapi.IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + wire.text(uapi.IFLA_IFNAME, "probe-v0.3")
    body += wire.u32(_IFLA_LINK, _Scratch().index("probe-v0")) + wire.nest(uapi.IFLA_LINKINFO, kind)
    return _accepted(Message(uapi.RTM_NEWLINK, CREATE, body), "a VLAN interface")


def _amt() -> str:
    """Make a relay on a veth, the only kind that the driver takes and that every kernel has (drivers/net/amt.c)."""
    _pair("probe-amt0", "probe-amt1")
    relay = AmtAdd("probe-amt", "02:00:00:00:00:04", "relay", "probe-amt0", "192.0.2.1", amt.PORT)
    return _accepted(relay.encode(_Scratch()), "an amt relay")


def _ipv6() -> str:
    if not Path("/proc/net/if_inet6").exists():
        raise OSError(errno.EAFNOSUPPORT, "there is no /proc/net/if_inet6")
    return "/proc/net/if_inet6"


def _tun(flag: int, what: str) -> Callable[[], str]:
    """Return a probe for TUN or TAP; closing the file removes the interface."""

    def check() -> str:
        with open("/dev/net/tun", "r+b", buffering=0) as device:
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"probe-tun", flag | _IFF_NO_PI))
        return f"/dev/net/tun made {what}"

    return check


def _multicast_routing(family: int, protocol: int, level: int, what: str) -> Callable[[], str]:
    """Return a probe for multicast routing of one family; closing the socket gives the table back."""

    def check() -> str:
        with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
            sock.setsockopt(level, _MRT_INIT, 1)
        return f"a socket took {what}"

    return check


def _multipath_seed() -> str:
    seed = Path("/proc/sys/net/ipv4/fib_multipath_hash_seed")
    seed.write_text("1")
    return f"{seed} took 1"


def _mptcp() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, uapi.IPPROTO_MPTCP):
        return "an MPTCP socket opened"


def _mptcp_diag() -> str:
    mptcp_sockets(socket.AF_INET)
    return "inet_diag lists MPTCP sockets"


def _kernel_path_manager() -> str:
    return _path_manager([mptcp.LimitsSet(2, 2)], "limits")


def _limits(count: int) -> str:
    return _path_manager([mptcp.LimitsSet(count, count)], f"limits of {count}")


def _endpoints(count: int) -> str:
    """Add so many endpoints of addresses for documentation (RFC 5737): the kernel does not ask whose they are."""
    wanted = [mptcp.EndpointAdd(f"192.0.2.{n}", n, ("subflow",)) for n in range(1, count + 1)]
    return _path_manager(wanted, f"{count} endpoints")


def _path_manager(requests: Sequence[mptcp.LimitsSet | mptcp.EndpointAdd], what: str) -> str:
    with netlink.connect(wire.NETLINK_GENERIC) as sock:
        kind = netlink.family(sock, mptcp.FAMILY)
        if not kind:
            raise OSError(errno.ENOENT, f"there is no generic netlink family {mptcp.FAMILY}")
        refused = netlink.transact(sock, [r.encode(_Scratch()) for r in requests], kind)
    if refused:
        raise OSError(refused[0].errno, f"the path manager refuses {what}: {refused[0]}")
    return f"{mptcp.FAMILY} took {what}"


_MPTCP = Path("/proc/sys/net/mptcp")  # of the namespace that one is in


def _userspace_path_manager() -> str:
    named, numbered = _MPTCP / "path_manager", _MPTCP / "pm_type"
    if named.exists():  # Linux 6.15 and later
        named.write_text("userspace")
        return f"net.mptcp.path_manager took userspace, of: {(_MPTCP / 'available_path_managers').read_text().strip()}"
    numbered.write_text("1")
    return "net.mptcp.pm_type took 1"


def _scheduler(feature: Feature) -> str:
    names = (_MPTCP / "available_schedulers").read_text().split()
    wanted = feature.name.removeprefix(features.MPTCP_SCHEDULER.name).removeprefix("-") or names[0]
    try:
        (_MPTCP / "scheduler").write_text(wanted)
    except OSError as e:
        why = f"net.mptcp.scheduler refuses {wanted}: {e.strerror}; available_schedulers: {' '.join(names)}"
        raise OSError(e.errno, why) from e
    return f"net.mptcp.scheduler took {wanted}, of: {' '.join(names)}"


def _congestion(name: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    return f"a TCP socket took {name}"


# Counts nothing, drops nothing: only checked (`nft -c` sends the kernel a batch that it must abort). Subtypes are
# numbers, for the names are younger than the option.
_RULESET = """table inet probe {
  chain c {
    type filter hook forward priority 0
    tcp option mptcp subtype 1 drop
    reset tcp option mptcp
  }
}
"""


def _nft_mptcp() -> str:
    done = programs.output("nft", "-c", "-f", "-", said=_RULESET)
    if done.status:
        raise OSError(errno.EOPNOTSUPP, f"nft refuses tcp option mptcp: {done.first}")
    return "nft -c accepted tcp option mptcp"


def _nf_tables(family: nftables.Family, *rules: nftables.NftRule) -> Callable[[], str]:
    """Return a probe that gives a table these rules: the kernel must know each of their expressions."""

    def check() -> str:
        bridge = family == "bridge"
        bases: dict[str, nftables.Base] = {"nat": "POSTROUTING", "reject": "PREROUTING" if bridge else "FORWARD"}
        asked: list[nftables.Nft] = [nftables.NftTable(family, tuple({bases.get(r.action, "FORWARD") for r in rules}))]
        for rule in rules:
            asked += [nftables.NftChain(family, rule.name, bases.get(rule.action, "FORWARD")), rule]
        refused = netlink.batch([m for request in asked for m in request.messages()])
        if refused is not None:
            raise OSError(refused.errno, f"nf_tables refuses what a middlebox does: {refused}")
        return f"nf_tables took {', '.join(r.action for r in rules)} ({family})"

    return check


def _rules(family: nftables.Family, *actions: nftables.Action) -> Callable[[], str]:
    rules = (nftables.NftRule(family, f"probe_{a}", a, times=1, rate=10**6, burst=65536) for a in actions)
    return _nf_tables(family, *rules)


_PROBES: dict[str, Callable[[], str]] = {
    "userns": lambda: "unshare(2) worked",  # or nobody would be here
    "veth": lambda: _pair("probe0", "probe1"),
    "bridge": _bridge,
    "vlan": _vlan,
    "ipv6": _ipv6,
    "tun": _tun(_IFF_TUN, "a TUN interface"),
    "tap": _tun(_IFF_TAP, "a TAP interface"),
    **{kind: _qdisc(kind) for kind in (*features.QDISCS, "htb")},
    "nft-mptcp": _nft_mptcp,
    "middlebox": _rules("inet", "strip", "drop", "reject", "corrupt", "limit"),
    "middlebox-bridge": _rules("bridge", "strip", "drop", "corrupt", "limit"),
    "middlebox-nat": _rules("inet", "nat", "firewall"),
    "middlebox-bridge-reject": _rules("bridge", "reject"),
    "multipath-seed": _multipath_seed,
    "mptcp": _mptcp,
    "mptcp-diag": _mptcp_diag,
    "mptcp-kernel-pm": _kernel_path_manager,
    "mptcp-userspace-pm": _userspace_path_manager,
    features.MPTCP_UNHEARD.name: unheard.asked,
    "mroute": _multicast_routing(socket.AF_INET, socket.IPPROTO_IGMP, socket.IPPROTO_IP, "MRT_INIT"),
    "mroute6": _multicast_routing(socket.AF_INET6, socket.IPPROTO_ICMPV6, socket.IPPROTO_IPV6, "MRT6_INIT"),
    "amt": _amt,
    "mac80211_hwsim": lambda: radios.made(mlo=False),
    "mac80211_hwsim-mlo": lambda: radios.made(mlo=True),
}
