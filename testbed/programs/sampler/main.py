"""A process inside a lab that reads every node's counters at a steady interval until SIGTERM, and then once more.

It writes one line of JSON for each node and tick: `t` is CLOCK_MONOTONIC and `time` CLOCK_REALTIME, in seconds. It
opens every socket and /proc file once, inside its namespace, so that a tick need not enter any.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from msgspec import Struct
from msgspec.structs import replace

from testbed.drivers import nftables, nl80211
from testbed.linux import calls as linux
from testbed.linux import netlink, uapi, wire
from testbed.programs.sampler import air, counters, neighbours, subflows, taps
from testbed.programs.sampler import wlans as state

_STATS = struct.Struct("=8Q")  # the head of struct rtnl_link_stats64 (if_link.h)
_LOOK, _SHARE = 0.02, 40  # s between two looks at subflows, which take at most one second in 40 of a processor
_CLOSE = 1e-3  # seconds between two clocks that count as read at once
_COUNTERS = (
    "rx_packets",
    "tx_packets",
    "rx_bytes",
    "tx_bytes",
    "rx_errors",
    "tx_errors",
    "rx_dropped",
    "tx_dropped",
)


class Node(Struct, frozen=True):
    """The open files and sockets of one node, and the files to write to."""

    route: socket.socket
    netstat: int
    out: TextIO
    wlan: socket.socket | None = None  # for requests to nl80211
    family: int = 0  # the message type of nl80211
    told: socket.socket | None = None  # for events of nl80211
    events: TextIO | None = None
    udp: tuple[int, ...] = ()  # /proc/net/snmp and snmp6
    roles: counters.Counters = {}
    tap: taps.Tap | None = None
    begun: TextIO | None = None  # flows that the tap has seen
    asking: neighbours.Asking | None = None
    host: subflows.Subflows | None = None  # of MPTCP
    rules: socket.socket | None = None  # for requests to nf_tables


def main(words: Sequence[str]) -> None:
    """Sample until SIGTERM.

    The argument is a JSON file {"every": seconds, "nodes": {name: ["mptcp", "wlan", "udp"]}, "air": {interface: MHz},
    "counters": {name: {role: {figure: [file, field]}}}, "flows": {name: {port: flow}}, "patience": seconds,
    "neighbours": {name: {ping: address}}}.
    """
    asked = json.loads(Path(words[0]).read_text())
    ended, end = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(end)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with suppress(PermissionError):  # as root: it uses little time, and is to look in time also while others use it all
        os.nice(-10)
    ears = [air.hear(ifname, freq) for ifname, freq in asked["air"].items()]
    nodes = {name: _open(name, extras, asked) for name, extras in asked["nodes"].items()}
    if asking := {name: n.asking for name, n in nodes.items() if n.asking is not None}:
        mute = neighbours.find(asking, asked["patience"])
        silent = [ping for name, mine in asked["neighbours"].items() for ping in mine if mine[ping] in mute[name]]
        Path("neighbours.json").write_text(f"{json.dumps(silent)}\n")
    told = {n.told: n for n in nodes.values() if n.told is not None}
    told |= {n.tap.sock: n for n in nodes.values() if n.tap is not None}
    heard = Path("air.jsonl").open("a") if ears else None  # noqa: SIM115 (open for the whole life of this process)
    machine = Path("machine.jsonl").open("a")  # noqa: SIM115 (the same)
    backlog = os.open("/proc/self/net/softnet_stat", os.O_RDONLY)

    def tick(before: list[int], whole: bool = False) -> list[int]:
        moment = _moment()
        for node in nodes.values():
            _write(node.out, moment | _sample(node, whole))
        if heard is not None:
            _write(heard, moment | _heard(ears))
        now = _cpu()
        _write(machine, moment | _usage(before, now) | softnet(_read(backlog)))
        return now

    before, due, going, first = _cpu(), time.monotonic(), True, True
    while going:
        before, first = tick(before, whole=first), False
        due = max(due + asked["every"], time.monotonic())
        going = _pause(ended, told, [n.host for n in nodes.values() if n.host is not None], due)
    tick(before, whole=True)


def _write(out: TextIO, row: dict[str, Any]) -> None:
    out.write(json.dumps(row) + "\n")
    out.flush()


def _moment() -> dict[str, float]:
    """Read both clocks at the same moment: read them again if this process had to wait between them.

    A report takes a change of their difference for a clock that was set.
    """
    for _ in range(5):
        t, real = time.monotonic(), time.time()
        if time.monotonic() - t < _CLOSE:
            break
    return {"t": t, "time": real}


def _read(fd: int) -> str:
    """Read a file of /proc from its start; files of many records return a page at a time."""
    content = b""
    while part := os.pread(fd, 65536, len(content)):
        content += part
    return content.decode()


def _pause(ended: int, told: dict[socket.socket, Node], hosts: list[subflows.Subflows], due: float) -> bool:
    """Wait for the next tick, and record events of nl80211 and subflows meanwhile; return False when this is to end."""
    waiting = select.poll()  # select() knows no descriptor above 1023
    waiting.register(ended, select.POLLIN)
    sources = {sock.fileno(): sock for sock in told}
    for fd in sources:
        waiting.register(fd, select.POLLIN)
    look = time.monotonic() + _LOOK
    while True:
        until = min(due, look) if any(h.live for h in hosts) else due
        ready = [fd for fd, _ in waiting.poll(max(0.0, until - time.monotonic()) * 1000)]
        if not ready and (began := time.monotonic()) < due:
            busy = time.process_time()
            for host in hosts:
                subflows.look(host)
            look = began + max(_LOOK, _SHARE * (time.process_time() - busy))
            continue
        moment = _moment()
        for fd in ready:
            if (sock := sources.get(fd)) in told and sock is not None:
                _record(told, sock, moment)
                if sock not in told:
                    waiting.unregister(fd)
                    sock.close()
        if ended in ready or not ready:
            return ended not in ready


def _record(told: dict[socket.socket, Node], sock: socket.socket, moment: dict[str, float]) -> None:
    """Write what a socket has heard."""
    node = told[sock]
    if node.tap is not None and node.begun is not None and sock is node.tap.sock:
        for t, flow in taps.begun(node.tap):
            _write(node.begun, {"t": t, "flow": flow})
        if not node.tap.flows:  # the node need not copy its packets any more
            del told[sock]
    elif node.events is not None:
        for event in state.events(sock):
            _write(node.events, moment | event)


def _heard(ears: list[air.Ear]) -> dict[str, Any]:
    for ear in ears:
        ear.drain()
    return {"frames": [row for ear in ears for row in ear.rows()], "drops": sum(ear.drops for ear in ears)}


def _open(name: str, extras: list[str], asked: dict[str, Any]) -> Node:
    fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
    linux.setns(fd, linux.CLONE_NEWNET)
    os.close(fd)
    Path(name).mkdir(exist_ok=True)
    out = Path(name, "samples.jsonl").open("a")  # noqa: SIM115 (the same)
    # /proc/self/net/netstat belongs to the namespace that it was opened in.
    netstat = os.open("/proc/self/net/netstat", os.O_RDONLY)
    route = netlink.connect(wire.NETLINK_ROUTE)
    names = ("snmp", "snmp6") if "udp" in extras else ()
    udp = tuple(os.open(f"/proc/self/net/{n}", os.O_RDONLY) for n in names if os.path.exists(f"/proc/self/net/{n}"))
    roles = counters.opened(asked["counters"].get(name, {}))
    flows = {int(port): flow for port, flow in asked["flows"].get(name, {}).items()}
    tap = taps.listen(flows) if flows else None
    begun = Path(name, "flows.jsonl").open("a") if flows else None  # noqa: SIM115 (the same)
    asking = neighbours.opened(asked["neighbours"][name].values()) if name in asked["neighbours"] else None
    host = subflows.opened() if "mptcp" in extras else None
    rules = netlink.connect(wire.NETLINK_NETFILTER) if nftables.TABLE in extras else None
    node = Node(route, netstat, out, udp=udp, roles=roles, tap=tap, begun=begun, asking=asking, host=host, rules=rules)
    if "wlan" not in extras:
        return node
    events = Path(name, "wlan-events.jsonl").open("a")  # noqa: SIM115 (the same)
    wlan = netlink.connect(wire.NETLINK_GENERIC)
    family = netlink.family(wlan, nl80211.FAMILY)
    return replace(node, wlan=wlan, family=family, told=state.listen(), events=events)


def _sample(node: Node, whole: bool) -> dict[str, Any]:
    """Read the counters of a node; `whole`: also which interfaces are up, and the addresses of any node."""
    names, counts_of, up = {}, {}, []
    for entry in netlink.dump(node.route, uapi.RTM_GETLINK, bytes(uapi.IFINFOMSG.size)):
        index, name, counts = parse_interface(entry)
        names[index] = name
        if name != "lo":
            counts_of[name] = counts
            up += [name] if uapi.IFINFOMSG.unpack_from(entry)[3] & uapi.IFF_UP else []
    sample: dict[str, Any] = {"interfaces": counts_of, "qdiscs": _qdiscs(node.route, names)}
    if node.host is not None:
        sample["mib"] = mib(os.pread(node.netstat, 65536, 0).decode())
        sample |= subflows.sample(node.host)
    if whole:
        sample["up"] = up
    if whole or node.host is not None:
        entries = netlink.dump(node.route, uapi.RTM_GETADDR, bytes(uapi.IFADDRMSG.size))
        sample["addresses"] = parse_addresses(entries, names)
    if node.wlan is not None:
        sample["wlans"] = state.wlans(node.wlan, node.family)
    if node.udp:
        sample["udp"] = sum(buffer_errors(os.pread(fd, 65536, 0).decode()) for fd in node.udp)
    if node.roles:
        sample["roles"] = counters.read(node.roles)
    if node.rules is not None:
        entries = netlink.dump(node.rules, nftables.COUNTERS, nftables.counters())
        packets = dict(map(nftables.parse_counter, entries))
        sample["roles"] = sample.get("roles", {}) | {nftables.TABLE: packets}
    return sample


@wire.decoder
def parse_interface(entry: bytes) -> tuple[int, str, dict[str, int]]:
    """Return the index, name and counters of an interface."""
    _, _, index, _, _ = uapi.IFINFOMSG.unpack_from(entry)
    fields = wire.attributes(entry, uapi.IFINFOMSG.size)
    counts = dict(zip(_COUNTERS, _STATS.unpack_from(fields[uapi.IFLA_STATS64]), strict=True))
    return index, fields[uapi.IFLA_IFNAME].rstrip(b"\0").decode(), counts


@wire.decoder
def parse_addresses(entries: Sequence[bytes], names: dict[int, str]) -> dict[str, list[str]]:
    """Return the addresses of each interface but the loopback, without link-local ones."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        family, _, _, _, index = uapi.IFADDRMSG.unpack_from(entry)
        fields = wire.attributes(entry, uapi.IFADDRMSG.size)
        if (name := names.get(index, "lo")) == "lo" or family not in (socket.AF_INET, socket.AF_INET6):
            continue
        # Of an IPv4 address, IFA_ADDRESS is that of the peer where the link is point to point (if_addr.h).
        raw = fields.get(uapi.IFA_LOCAL, fields.get(uapi.IFA_ADDRESS, b""))
        if not (family == socket.AF_INET6 and raw[:1] == b"\xfe" and raw[1] >> 6 == 0b10):
            found.setdefault(name, []).append(socket.inet_ntop(family, raw))
    return found


def _qdiscs(route: socket.socket, names: dict[int, str]) -> list[dict[str, Any]]:
    return parse_qdiscs(netlink.dump(route, uapi.RTM_GETQDISC, bytes(uapi.TCMSG.size)), names)


@wire.decoder
def parse_qdiscs(entries: Sequence[bytes], names: dict[int, str]) -> list[dict[str, Any]]:
    """Return the queueing disciplines with counters, and the names of their interfaces."""
    rows = []
    for entry in entries:
        _, index, handle, parent, _ = uapi.TCMSG.unpack_from(entry)
        fields = wire.attributes(entry, uapi.TCMSG.size)
        kind = fields[uapi.TCA_KIND].rstrip(b"\0").decode()
        if kind == "noqueue" or uapi.TCA_STATS2 not in fields:
            continue
        stats = wire.attributes(fields[uapi.TCA_STATS2])
        size, packets = struct.unpack_from("=QI", stats[uapi.TCA_STATS_BASIC])
        qlen, backlog, drops, _, overlimits = struct.unpack_from("=5I", stats[uapi.TCA_STATS_QUEUE])
        row = {
            "dev": names.get(index, str(index)),
            "kind": kind,
            "handle": f"{handle >> 16:x}:",
            "parent": f"{parent:x}",
        }
        row |= {
            "bytes": size,
            "packets": packets,
            "qlen": qlen,
            "backlog": backlog,
            "drops": drops,
            "overlimits": overlimits,
        }
        rows.append(row)
    return rows


@wire.decoder
def mib(netstat: str) -> dict[str, int]:
    """Parse this kernel's MPTCP counters from /proc/net/netstat; their names differ between kernels."""
    rows = [row.split() for row in netstat.splitlines() if row.startswith("MPTcpExt:")]
    return dict(zip(rows[0][1:], map(int, rows[1][1:]), strict=True)) if len(rows) == 2 else {}


@wire.decoder
def buffer_errors(snmp: str) -> int:
    """Parse the number of datagrams that found a socket's buffer full from /proc/net/snmp or snmp6."""
    rows = [row.split() for row in snmp.splitlines()]
    udp = [row for row in rows if row and row[0] == "Udp:"]
    if len(udp) == 2:
        return int(dict(zip(*udp, strict=True))["RcvbufErrors"])
    return sum(int(row[1]) for row in rows if row and row[0] == "Udp6RcvbufErrors")


@wire.decoder
def softnet(text: str) -> dict[str, dict[str, int]]:
    """Parse /proc/net/softnet_stat (net/core/net-procfs.c): packets that all CPUs dropped, rounds they cut short."""
    rows = [row.split() for row in text.splitlines()]
    return {"softnet": {"dropped": sum(int(r[1], 16) for r in rows), "squeezed": sum(int(r[2], 16) for r in rows)}}


def _cpu() -> list[int]:
    with open("/proc/stat") as file:
        return [int(word) for word in file.readline().split()[1:]]


def _usage(before: list[int], now: list[int]) -> dict[str, float]:
    """Return the busy share of all CPUs since the last tick, and the stolen one.

    Fields 4 and 5 (idle, iowait) count as not busy, 8 (steal) as busy.
    """
    spent = [b - a for a, b in zip(before, now, strict=True)][:8]
    total = sum(spent) or 1
    idle = spent[3] + spent[4]  # iowait may decrease (proc(5))
    return {"cpu": min(1.0, max(0.0, 1 - idle / total)), "steal": min(1.0, max(0.0, spent[7] / total))}


if __name__ == "__main__":
    main(sys.argv[1:])
