"""Facts that a step waits for, in the kernel's own tables."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from testbed.drivers.facts import Capturing, FileHas, Listening


def lacking(fact: Listening) -> str:
    return fact.lacking(*(Path(file).read_text() for file in fact.files()))


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_has_a_listener_from_listen_to_close(family: socket.AddressFamily, address: str) -> None:
    with socket.socket(family) as server:
        server.bind((address, 0))
        fact = Listening(server.getsockname()[1])
        assert lacking(fact) == f"no listener on {fact.port}", "bound is not listening"
        server.listen()
        assert lacking(fact) == ""
        client = socket.create_connection((address, fact.port))
        accepted, _ = server.accept()
    with client, accepted:
        assert lacking(fact) == f"no listener on {fact.port}", "a connection of that port is not a listener"


def test_tables_that_a_kernel_does_not_have_have_no_listener() -> None:
    assert Listening(5201).lacking("", "") == "no listener on 5201"


def test_a_fact_is_printed_as_what_is_awaited() -> None:
    facts = (Listening(5201), Capturing("eth0", "a/eth0.log"), FileHas("a/ready"))
    assert [str(fact) for fact in facts] == ["listening on port 5201", "capturing eth0", "a/ready has content"]
