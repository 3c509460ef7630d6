"""What the keeper of a guest makes of keys."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from testbed.machines.guest.shell import for_dropbear


@pytest.mark.parametrize("comment", ["", "somebody@somewhere"])
def test_dropbear_is_given_the_same_key_as_ssh_keygen_made(tmp_path: Path, comment: str) -> None:
    words = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(tmp_path / "key"))
    subprocess.run(words, check=True)
    public = base64.b64decode((tmp_path / "key.pub").read_text().split()[1])
    found = for_dropbear((tmp_path / "key").read_text())
    # RFC 8709, section 4: the type and the key of 32 bytes, each with its length; Dropbear's also the private.
    assert public[:15] == found[:15] == b"\0\0\0\x0bssh-ed25519"
    assert found[15:19] == (64).to_bytes(4, "big")
    assert found[-32:] == public[-32:]
    assert len(found) == 15 + 4 + 64
