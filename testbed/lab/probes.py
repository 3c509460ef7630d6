"""Observe the facts that steps wait for, from inside a node's namespace: ask the kernel, never a clock."""

from __future__ import annotations

import re
import signal
from ipaddress import ip_address
from pathlib import Path

from testbed.drivers import amt, link, membership, mptcp, nl80211, smcroute
from testbed.drivers.facts import Capturing, FileHas, LogSays
from testbed.drivers.wpa_ctrl import Controlled
from testbed.errors import LabError
from testbed.lab.namespace import Namespace
from testbed.linux import netlink, uapi, wire
from testbed.steps import Probe, Shown

_PATIENCE, _TAIL = 1.0, 1 << 16  # seconds of a processor for an expression, and bytes of a log that it is tried on


def holds(probe: Probe, space: Namespace, home: int, folder: Path) -> str:
    """Return "" when the fact holds in the namespace `space`, else what is seen instead; `home` is where we are."""
    match probe:
        case link.LinksUp(names):
            down = [n for n in names if not netlink.running(space.route, n)]
            return f"not up: {' '.join(down)}" if down else ""
        case link.TreeStands():
            asked = uapi.IFINFOMSG.pack(uapi.AF_BRIDGE, 0, 0, 0, 0)
            return probe.unmet([*map(link.parse_port, netlink.dump(space.route, uapi.RTM_GETLINK, asked))])
        case amt.RelayFound(name):
            found = filter(None, map(amt.parse_link, netlink.link_entries(space.route)))
            return probe.unmet(next((a for a in found if a.name == name), None))
        case FileHas(path):
            file = folder / path
            return "" if file.exists() and file.stat().st_size else f"{path} is empty"
        case LogSays(path, expression):
            return "" if _says(folder / path, expression) else f"{path} has no line that matches {expression!r}"
        case Controlled(tool, control, ifname):
            return "" if Path(control, ifname).is_socket() else f"{tool}: no control socket in {control}"
        case nl80211.LinksAre(name):
            unmet = probe.unmet(wlan(space, name), netlink.running(space.route, name))
            return unmet or (
                probe.unknown(_stations(space.peers[probe.there[0]], probe.there[1])) if probe.there else ""
            )
    with netlink.inside(space.fd, home):
        match probe:
            case Capturing(ifname, log):
                # Fields: sk RefCnt Type Proto Iface R(unning); until it runs for ETH_P_ALL, a socket is being set up.
                rows = [row.split() for row in Path("/proc/self/net/packet").read_text().splitlines()[1:]]
                if not any(r[3:6] == ["0003", str(space.index(ifname)), "1"] for r in rows):
                    return f"no packet socket on {ifname}"
                said = folder / log
                return "" if said.exists() and "File:" in said.read_text() else "dumpcap has not opened its file"
            case link.Silence(bridge):
                # net/core/net-procfs.c: the name is followed by received bytes and packets.
                rows = [row.partition(":")[2].split() for row in _net("dev").splitlines()[2:]]
                up = netlink.flags(space.route, bridge) & uapi.IFF_UP
                return "" if up else f"{sum(int(row[1]) for row in rows)} frames"
            case mptcp.PathManagerHas(limits, endpoints):
                return _path_manager(limits, endpoints)
            case smcroute.Forwarding():
                return smcroute.lacking(probe, [_multicast_routes(v) for v in probe.versions])
            case membership.Joined(ifname=ifname):
                groups, sources = map(_net, probe.tables())
                return membership.lacking(probe, space.index(ifname), groups, sources)
            case Shown():
                return probe.lacking(*map(_text, probe.files()))
    raise LabError(f"no way to observe: {probe}")


def _says(path: Path, expression: str) -> bool:
    """Say whether one of the last lines of a log matches; LabError when that takes longer than anybody waits."""

    def late(*_: object) -> None:
        raise LabError(f"matching {expression!r} took longer than {_PATIENCE:g} s")

    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read(_TAIL).decode(errors="replace").splitlines()
    before = signal.signal(signal.SIGVTALRM, late)  # the interpreter looks for signals while it matches
    signal.setitimer(signal.ITIMER_VIRTUAL, _PATIENCE)
    try:
        return any(re.search(expression, line) for line in lines)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def wlan(space: Namespace, name: str) -> nl80211.Wlan | None:
    """Return nl80211's description of a wireless interface."""
    entries = netlink.dump(space.generic(), space.family(nl80211.FAMILY), nl80211.GET_INTERFACES)
    return next((w for w in map(nl80211.parse_interface, entries) if w.name == name), None)


def _stations(space: Namespace, name: str) -> dict[str, bool]:
    """Return the stations of an access point's interface, and whether each is authorized."""
    asked = nl80211.get_stations(space.index(name))
    return dict(map(nl80211.parse_station, netlink.dump(space.generic(), space.family(nl80211.FAMILY), asked)))


def _net(name: str) -> str:
    return _text(f"/proc/self/net/{name}")


def _text(file: str) -> str:
    path = Path(file)
    return path.read_text() if path.exists() else ""


def _multicast_routes(version: int) -> tuple[int, dict[int, str], tuple[smcroute.Entry, ...]]:
    family = "ip" if version == 4 else "ip6"
    interfaces = smcroute.parse_interfaces(_net(f"{family}_mr_vif"))
    return version, interfaces, smcroute.parse_cache(_net(f"{family}_mr_cache"), interfaces)


def _path_manager(limits: mptcp.LimitsSet | None, endpoints: tuple[mptcp.EndpointAdd, ...]) -> str:
    # Linux 6.15 has path_manager; the older pm_type is 0 for the kernel's own.
    for sysctl, own in (("path_manager", "kernel"), ("pm_type", "0")):
        path = Path("/proc/sys/net/mptcp", sysctl)
        if path.exists() and (value := path.read_text().strip()) != own:
            return f"net.mptcp.{sysctl} is {value}"
    with netlink.connect(wire.NETLINK_GENERIC) as sock:
        if not (kind := netlink.family(sock, mptcp.FAMILY)):
            return "the kernel has no mptcp_pm family"
        body = mptcp.command(uapi.MPTCP_PM_CMD_GET_LIMITS)
        sock.send(wire.header(len(body), kind, wire.NLM_F_REQUEST, 1) + body)
        got = mptcp.parse_limits(wire.messages(sock.recv(65536))[0][3])
        if limits is not None and got != limits:
            return f"limits are subflows {got.subflows} add_addr_accepted {got.add_addr_accepted}"
        asked = mptcp.command(uapi.MPTCP_PM_CMD_GET_ADDR)
        seen = set(map(mptcp.parse_endpoint, netlink.dump(sock, kind, asked)))
    wanted = {(str(ip_address(e.address)), e.id, sum(mptcp.FLAGS[f] for f in e.flags)) for e in endpoints}
    if missing := wanted - seen:
        return f"endpoints missing or changed: {sorted(missing)} (the kernel has {sorted(seen)})"
    return ""
