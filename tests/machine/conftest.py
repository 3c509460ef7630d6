"""What tests of machines share: the guest's image, made when the cache has none."""

from __future__ import annotations

import pytest

from testbed.errors import Unsupported
from testbed.machines import image
from tests.conftest import REQUIRED

IN_A_GUEST = {"netem", "amt", "mlo"}  # what CI asks for and only a guest has everywhere


@pytest.fixture(scope="session")
def guests() -> None:
    """Skip, or fail where CI asks for what only a guest has, when this machine can't have guests."""
    try:
        image.find() or image.build(lambda text, fraction: None)
    except Unsupported as e:
        if REQUIRED & IN_A_GUEST:
            pytest.fail(f"TESTBED_REQUIRE={','.join(sorted(REQUIRED))} asks for guests: {e}")
        pytest.skip(str(e))
