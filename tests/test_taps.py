"""The packet that starts a flow of iperf3 is told from others by the kernel's filter and by the parser."""

from __future__ import annotations

import socket
import struct

import pytest

from testbed.programs.sampler import taps


def tcp(payload: bytes, options: bytes = b"") -> bytes:
    return (
        struct.pack("!HHIIBBHHH", 5203, 40000, 1, 1, (20 + len(options)) // 4 << 4, 0x18, 64, 0, 0) + options + payload
    )


def four(segment: bytes, options: bytes = b"", protocol: int = 6, padding: bytes = b"") -> bytes:
    size = 20 + len(options)
    head = struct.pack("!BBHHHBBHII", 0x40 | size // 4, 0, size + len(segment), 0, 0, 64, protocol, 0, 1, 2)
    return head + options + segment + padding


def six(segment: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(segment), 6, 64) + bytes(32) + segment


STAMPS = b"\x01\x01" + bytes(10)  # as long as TCP's time stamps
STARTING = {
    "over IPv4": four(tcp(b"\x01", STAMPS)),
    "over IPv6": six(tcp(b"\x01", STAMPS)),
    "with options of IP": four(tcp(b"\x01"), bytes(8)),
    "sent again with what is before and after it": four(tcp(b"\x0a\x01\x02")),
    "in a short frame, which is padded": four(tcp(b"\x01"), padding=bytes(6)),
}
OTHERS = {
    "an acknowledgement": four(tcp(b"", STAMPS)),
    "an acknowledgement, padded": four(tcp(b""), padding=b"\x01" * 6),
    "data": six(tcp(bytes(1400))),
    "UDP": four(tcp(b"\x01"), protocol=17),
    "nothing": b"",
}


@pytest.mark.parametrize("packet", STARTING.values(), ids=STARTING)
def test_what_starts_a_test_passes_the_filter_and_names_its_port(packet: bytes) -> None:
    assert passes(packet)
    assert taps.started(packet) == 5203


@pytest.mark.parametrize("packet", OTHERS.values(), ids=OTHERS)
def test_other_packets_do_not(packet: bytes) -> None:
    assert not passes(packet)
    assert not taps.started(packet)


@pytest.mark.parametrize("state", [b"\x02", b"\x0a", b"\x04", b"\x01\x33"])
def test_other_states_and_other_protocols_of_short_messages_do_not(state: bytes) -> None:
    assert passes(four(tcp(state))), "the kernel's filter looks at the length alone"
    assert not taps.started(four(tcp(state)))


def passes(packet: bytes) -> bool:
    """Say whether the kernel's filter lets a packet through: it filters the datagrams of every kind of socket."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with here, there:
        there.setblocking(False)
        taps.attach(there)
        try:
            here.send(packet)
            return bool(there.recv(4096))
        except (BlockingIOError, PermissionError):
            return False
