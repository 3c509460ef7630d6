"""Messages that no program of ours sends, to holders and keepers; `make fuzz KINDS=sockets` sends more of them."""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz import sockets

SEED = int(os.environ.get("TESTBED_SEED") or random.randrange(10**6))  # printed with a failure; set it to repeat


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="plays another user")
def test_no_message_ends_a_lab_or_a_guest() -> None:
    assert sockets.main(60, SEED) == 0
