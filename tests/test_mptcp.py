"""What inet_diag says of a subflow, from an entry built by the kernel's header files (no kernel)."""

from __future__ import annotations

import socket
import struct

import pytest

from testbed.linux import inet_diag as diag
from testbed.linux import wire
from testbed.linux.host import host


def entry(family: int = socket.AF_INET, state: int = 1, flags: int = 0, ulp: bool = True) -> bytes:
    """struct inet_diag_msg (72 bytes), INET_DIAG_INFO with struct tcp_info, INET_DIAG_ULP_INFO with MPTCP's part."""
    local, remote = ("10.0.0.1", "10.0.0.2") if family == socket.AF_INET else ("2001:db8::1", "2001:db8::2")
    addresses = b"".join(socket.inet_pton(family, a).ljust(16, b"\0") for a in (local, remote))
    head = struct.pack("=BBBB", family, state, 0, 0) + struct.pack("!HH", 40000, 5201) + addresses
    info = bytearray(248)
    for form, at, value in (
        ("=I", 68, 12_500),  # tcpi_rtt, us
        ("=I", 80, 10),  # tcpi_snd_cwnd
        ("=I", 100, 3),  # tcpi_total_retrans
        ("=Q", 120, 1000),  # tcpi_bytes_acked
        ("=Q", 128, 2000),  # tcpi_bytes_received
        ("=Q", 200, 1500),  # tcpi_bytes_sent
    ):
        struct.pack_into(form, info, at, value)
    mptcp = wire.u32(2, 77) + wire.u32(8, flags) + wire.u8(9, 2) + wire.u8(10, 1)  # token_loc, flags, ids
    rest = wire.nest(19, wire.nest(3, mptcp)) if ulp else b""
    return head.ljust(72, b"\0") + wire.attr(2, bytes(info)) + rest


@pytest.mark.parametrize(
    ("family", "local", "remote"),
    [(socket.AF_INET, "10.0.0.1", "10.0.0.2"), (socket.AF_INET6, "2001:db8::1", "2001:db8::2")],
)
def test_a_subflow_has_its_connection_its_addresses_and_its_counters(family: int, local: str, remote: str) -> None:
    found = diag._subflow(entry(family))
    assert found == diag.Subflow(77, local, remote, 40000, 5201, 1, 2, False, "ESTAB", 12.5, 10, 3, 1500, 1000, 2000)


@pytest.mark.parametrize(("flags", "backup"), [(0, False), (0b010000, True), (0b100000, True), (0b001111, False)])
def test_a_subflow_is_a_backup_when_either_side_says_so(flags: int, backup: bool) -> None:
    found = diag._subflow(entry(flags=flags))
    assert found is not None
    assert found.backup is backup


def test_a_state_without_a_name_is_its_number() -> None:
    found = diag._subflow(entry(state=12))
    assert found is not None
    assert found.state == "12"


def test_a_socket_of_plain_tcp_is_no_subflow() -> None:
    assert diag._subflow(entry(ulp=False)) is None


def test_an_entry_that_is_cut_off_is_no_subflow() -> None:
    assert diag._subflow(entry()[:100]) is None


def test_ipv4_in_ipv6_is_ipv4() -> None:
    assert host(socket.inet_pton(socket.AF_INET6, "::ffff:10.0.0.1")) == "10.0.0.1"
