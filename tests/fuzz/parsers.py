"""What a kernel says, cut off and changed: each parser returns, or says in one sentence that it can't read that.

`python -m tests.fuzz.parsers 1000 7` gives every parser 1000 inputs, with the seed 7. Half of them are answers of this
kernel that were changed, half are made up of attributes that the parsers look for.
"""

from __future__ import annotations

import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from testbed.drivers import amt, joins, membership, mptcp_pm, nftables, nl80211, smcroute
from testbed.errors import LabError
from testbed.lab import look
from testbed.linux import inet_diag as diag
from testbed.linux import netlink, wire
from testbed.programs.multicast import packets as records
from testbed.programs.sampler import main as sampler
from tests.fuzz import found

KIND = "parsers"
_PATIENCE = 2.0  # seconds of one input: more is a loop that does not end
_KINDS = (*range(1, 11), 19, 20, 21, 22, 23, 33, 38, 47, 159, 312, 313)  # attributes that something is made of


def _text(parse: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: parse(data.decode("latin1"))


PARSERS: Mapping[str, Callable[[bytes], object]] = {
    "messages": wire.messages,
    "attributes": wire.attributes,
    "link": netlink.parse_link,
    "family": netlink.parse_family,
    "error": netlink.parse_error,
    "groups": netlink.parse_groups,
    "wiphy": nl80211.parse_wiphy,
    "wlan": nl80211.parse_interface,
    "bss": nl80211.parse_bss,
    "station": nl80211.parse_station,
    "event": nl80211.parse_event,
    "country": nl80211.parse_country,
    "amt": amt.parse_link,
    "mptcp event": mptcp_pm.parse_event,
    "join": joins.parse_join,
    "queued": lambda data: joins.parse_message(0x300, data),
    "logged": lambda data: joins.parse_message(0x400, data),
    "policy": lambda data: netlink.parse_policy([data], 3),
    "subflow": diag._subflow,
    "interface": sampler.parse_interface,
    "nftables": lambda data: nftables.parse_counter(data),
    "qdiscs": lambda data: sampler.parse_qdiscs([data], {}),
    "owners": lambda data: sampler.parse_addresses([data], {}),
    "links": lambda data: look.interfaces({"links": [data], "addresses": [], "qdiscs": []}),
    "addresses": lambda data: look.interfaces({"links": [], "addresses": [data], "qdiscs": [data]}),
    "wlans": lambda data: look.interfaces({"links": [], "addresses": [], "qdiscs": [], "wlans": [data]}),
    "mib": _text(sampler.mib),
    "snmp": _text(sampler.buffer_errors),
    "softnet": _text(sampler.softnet),
    "multicast interfaces": _text(smcroute.parse_interfaces),
    "multicast routes": _text(lambda text: smcroute.parse_cache(text, {0: "a", 1: "b"})),
    "memberships": _text(
        lambda text: membership.lacking(membership.Joined("232.1.1.1", "a", "10.0.0.1"), 1, text, text)
    ),
    "memberships 6": _text(lambda text: membership.lacking(membership.Joined("ff3e::1", "a", "fd::1"), 1, text, text)),
    "arrivals": lambda data: records.arrivals(data, 1),
    "sent": records.sent_times,
}


class TooLongError(BaseException):
    """A parser took more than it may; no `except` in it holds this up."""


def _too_long(*_: object) -> None:
    raise TooLongError


def wrong(parser: str, data: bytes) -> str:
    """Give a parser some bytes; return what it did that it may not, "" when there is nothing."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    try:
        PARSERS[parser](data)
    except LabError as e:
        return "" if len(str(e)) < 1000 else f"a message of {len(str(e))} characters"
    except TooLongError:
        return "it does not end"
    except BaseException as e:  # noqa: BLE001 (whatever it is, it is what is looked for)
        return f"{type(e).__name__}: {e}"[:200]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def answers() -> list[bytes]:
    """Return what this kernel says of itself: tables by netlink, and files of /proc."""
    said = []
    with netlink.connect(wire.NETLINK_ROUTE) as sock:
        for kind, size in ((18, 16), (22, 8), (38, 20)):
            said += netlink.dump(sock, kind, bytes(size))
    with netlink.connect(wire.NETLINK_GENERIC) as sock:
        said += netlink.dump(sock, 16, struct.pack("=BBH", 3, 1, 0))
        body = struct.pack("=BBH", 3, 1, 0) + wire.text(2, "nlctrl")
        sock.send(wire.header(len(body), 16, wire.NLM_F_REQUEST, 1) + body)
        said.append(sock.recv(65536))
    asked = struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 2, 0xFFF) + bytes(48)
    with (
        netlink.connect(wire.NETLINK_SOCK_DIAG) as sock,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
    ):
        said += netlink.dump(sock, 20, asked)
    names = "netstat snmp snmp6 softnet_stat igmp mcfilter igmp6 mcfilter6 ip_mr_cache ip_mr_vif"
    files = [Path("/proc/self/net", name) for name in names.split()]
    said += [file.read_bytes() for file in files if file.exists()]
    return said


def made(chance: random.Random, said: Sequence[bytes]) -> bytes:
    """Return an input: an answer that was changed at some places, or one that was made up."""
    if chance.random() < 0.5:
        data = bytearray(chance.choice(said))
        for _ in range(chance.choice((0, 1, 1, 2, 8))):
            if data:
                at = chance.randrange(len(data))
                data[at : at + chance.choice((0, 1, 1, 4))] = chance.randbytes(chance.choice((0, 1, 1, 4)))
        return bytes(data[: chance.randrange(len(data) + 1)] if chance.random() < 0.3 else data)
    return chance.randbytes(chance.choice((0, 4, 16, 20, 72))) + _attributes(chance, 0)


def _attributes(chance: random.Random, depth: int) -> bytes:
    rows = b""
    for _ in range(chance.randrange(6)):
        kind = chance.choice((*_KINDS, chance.randrange(65536)))
        inside = depth < 3 and chance.random() < 0.4
        body = _attributes(chance, depth + 1) if inside else chance.randbytes(chance.choice((0, 1, 2, 4, 6, 8, 40, 80)))
        length = 4 + len(body) if chance.random() < 0.85 else chance.randrange(65536)
        rows += struct.pack("=HH", length, kind) + body + bytes(-len(body) % 4)
    return rows


def main(count: int, seed: int) -> int:
    """Give every parser that many inputs, print what came of it, and return 1 when anything is wrong."""
    chance, said = random.Random(seed), answers()
    began, bad = time.monotonic(), 0
    for _ in range(count):
        data = made(chance, said)
        for parser in PARSERS:
            if why := wrong(parser, data):
                bad += 1
                print(f"{parser}: {why}: {found.keep(KIND, parser, data)}")
    rate = count * len(PARSERS) / (time.monotonic() - began)
    print(f"{KIND}: seed {seed}: {count} inputs for {len(PARSERS)} parsers, {rate:.0f} a second; {bad} wrong")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
