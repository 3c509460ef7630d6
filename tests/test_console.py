"""A console that says more than anybody reads: its beginning and its end are kept, and memory is bounded."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from testbed.machines.guest import console


def test_a_flood_leaves_its_beginning_its_end_and_how_much_was_dropped(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    kept = console.opened(ours, tmp_path / "console")
    theirs.sendall(b"the first words\n")
    assert kept.hear()
    total, row = 16, b"flood %010d\n"
    for n in range(0, 20 << 20, 8192):
        part = (row % n) * 400
        theirs.sendall(part)
        total += len(part)
        assert kept.hear()
        assert os.fstat(kept.file).st_blocks * 512 <= console.HEAD + console.TAIL + (3 << 16)
    theirs.sendall(b"the last words\n")
    said = kept.text()
    dropped = total + 15 - console.HEAD - console.TAIL
    assert said.startswith(b"the first words\n")
    assert said.endswith(b"the last words\n")
    assert b"%d bytes of this console were dropped" % dropped in said
    assert b"\0" not in said
    mark = os.fstat(kept.file).st_size
    theirs.sendall(b"after the mark")
    assert kept.hear()
    assert console.since(kept.file, mark) == b"after the mark"
    assert b"\0" not in console.since(kept.file, 0)


def test_a_console_that_is_closed_is_heard_no_more(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    kept = console.opened(ours, tmp_path / "console")
    theirs.sendall(b"last")
    theirs.close()
    assert kept.hear()
    assert not kept.hear()
    assert kept.text() == b"last"
