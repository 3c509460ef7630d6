"""SSH to a guest: its keys, the command line of ssh, and the connection that all commands share."""

from __future__ import annotations

import base64
import os
import resource
import select
import signal
import time
from pathlib import Path

from testbed.errors import LabError
from testbed.machines.guest.running import FOLDER, Keeper, tail


def spawn(*argv: str, log: Path | None = None) -> int:
    """Start one of OpenSSH's programs and return its process id."""
    out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        pid = os.posix_spawnp(
            argv[0],
            argv,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, out, 2)],
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
        )
    finally:
        os.close(out)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # what it says is in memory
    return pid


def for_dropbear(key: str) -> bytes:
    """Convert an Ed25519 key of ssh-keygen to the form that Dropbear's server reads.

    OpenSSH's (its PROTOCOL.key): a magic, four strings (RFC 4251, section 5) and a count, then a string that holds two
    check numbers, type, public key, both keys and a comment. Dropbear's: type and both keys.
    """
    _, rest = _strings(base64.b64decode(key.split("-----")[2])[len(b"openssh-key-v1\0") :], 3)
    _, rest = _strings(rest[4:], 1)
    (kind, _, both), _ = _strings(rest[4 + 8 :], 3)
    return kind + both


def _strings(data: bytes, count: int) -> tuple[list[bytes], bytes]:
    """Return strings of SSH's wire format, each after its length, and the bytes that follow them."""
    found = []
    for _ in range(count):
        end = 4 + int.from_bytes(data[:4], "big")
        found.append(data[:end])
        data = data[end:]
    return found, data


def ssh(folder: Path, port: int) -> tuple[str, ...]:
    """Return ssh's words for a guest whose keys are in `folder`; it uses the keeper's connection if it can."""
    options = {
        "UserKnownHostsFile": str(folder / "known_hosts"),
        "GlobalKnownHostsFile": "none",
        "HostKeyAlias": "testbed",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "KexAlgorithms": "curve25519-sha256",  # those with lattices take an emulated processor longer
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "ControlPath": str(folder / "ssh"),
    }
    words = [w for name, value in options.items() for w in ("-o", f"{name}={value}")]
    return ("ssh", "-F", "none", "-i", str(folder / "key"), "-p", str(port), *words, "root@127.0.0.1")


def connect(keeper: Keeper) -> None:
    """Open the connection that all commands share: a new one costs an emulated processor a key exchange."""
    *words, where = ssh(FOLDER, keeper.port)
    keeper.master = spawn(*words, "-M", "-N", "-o", "ServerAliveInterval=0", where, log=FOLDER / "ssh.log")
    deadline = time.monotonic() + 30
    ended = os.pidfd_open(keeper.master)
    while not (FOLDER / "ssh").exists():
        if select.select([ended, keeper.life], [], [], 0.003)[0] or time.monotonic() > deadline:
            said = (FOLDER / "ssh.log").read_text().strip()
            raise LabError(tail(keeper, f"ssh does not reach it: {said or 'no answer'}"))
    os.close(ended)
