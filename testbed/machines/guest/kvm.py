"""Find out whether KVM runs this image's kernel, by booting it: that /dev/kvm exists proves nothing."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from testbed.linux import calls as linux
from testbed.machines import trusted
from testbed.machines.guest import confined, qemu
from testbed.machines.guest.qemu import Boot, Size, Wires

DEVICE = Path("/dev/kvm")
_PATIENCE = 15.0  # s; where KVM works, a kernel is in its init within one


def works(boot: Boot, version: str, remembered: Path) -> tuple[bool, str]:
    """Return whether KVM runs this kernel here, and how that is known; it is tried once for each boot of the host."""
    if not DEVICE.exists():
        return False, f"there is no {DEVICE}"
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return False, f"this user may not open {DEVICE} (group kvm)"
    if (told := known(remembered, version)) is not None:
        return told
    found, why = _boots(boot)
    with suppress(OSError):  # an image that belongs to somebody else: then it is asked each time
        part = remembered.with_name(f".{remembered.name}-{os.getpid()}")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644), "w") as file:
            json.dump({**_key(version), "works": found, "why": why}, file)
        part.rename(remembered)
    return found, why


def known(remembered: Path, version: str) -> tuple[bool, str] | None:
    """Return what was found out in this boot of the host with this QEMU, None when nothing was."""
    with suppress(OSError, ValueError, KeyError):
        told = json.loads(trusted.read(remembered))
        if all(told[k] == v for k, v in _key(version).items()):
            return bool(told["works"]), str(told["why"])
    return None


def _key(version: str) -> dict[str, str]:
    return {"host": Path("/proc/sys/kernel/random/boot_id").read_text().strip(), "qemu": version}


def _boots(boot: Boot) -> tuple[bool, str]:
    """Boot with KVM until the guest's own init says hello, or QEMU says why not."""
    (qmp, qmp_there), (agent, agent_there) = socket.socketpair(), socket.socketpair()
    uid = confined.user()
    files = [trusted.opened(file) for file in (boot.kernel, boot.initrd, boot.root)]
    with TemporaryDirectory(prefix="testbed-kvm-") as name, qmp, agent:
        os.chmod(name, 0o755)  # noqa: S103 (it is empty)
        files.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        kernel, initrd, root, empty = (Path(f"/proc/self/fd/{fd}") for fd in files)
        wires = Wires(qmp_there.fileno(), agent_there.fileno(), empty=str(empty))
        words = qemu.argv(Boot(kernel, initrd, root, "kvm"), Size(1, 512), wires, {}, None)

        def confine() -> None:
            if uid:
                linux.unshare(linux.CLONE_NEWNS)
                linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
                linux.mount("run", "/run", "tmpfs")
                confined.admit(uid)
            confined.give_up(uid)
            linux.prctl(linux.PR_SET_PDEATHSIG, 9)

        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(qmp_there.fileno(), agent_there.fileno(), *files),
            preexec_fn=confine,
        )
        for fd in (qmp_there.detach(), agent_there.detach(), *files):
            os.close(fd)
        try:
            return _outcome(child, qmp, agent)
        finally:
            child.kill()
            child.communicate()


def _outcome(child: subprocess.Popen[bytes], qmp: socket.socket, agent: socket.socket) -> tuple[bool, str]:
    assert child.stderr is not None
    qmp.sendall(b'{"execute": "qmp_capabilities"}\n')
    said, deadline = b"", time.monotonic() + _PATIENCE
    while (rest := deadline - time.monotonic()) > 0:
        sources: list[Any] = [qmp, agent, child.stderr]
        ready = select.select(sources, [], [], min(rest, 0.5))[0]
        if agent in ready:
            if b"hello" in agent.recv(4096):
                return True, "it booted this kernel"
        elif qmp in ready:
            said += qmp.recv(65536)
        elif child.stderr in ready:
            child.wait(rest)  # it says why, and ends
            words = child.stderr.read().decode(errors="replace").replace("qemu-system-x86_64: ", "").splitlines()
            return False, f"{DEVICE} opens, but QEMU fails with it: {(words or ['it ended'])[0]}"
        if b'"internal-error"' in said:
            return False, f"{DEVICE} opens, but KVM can't run this kernel: it stops with an internal error"
        if not ready:
            with suppress(OSError):
                qmp.sendall(b'{"execute": "query-status"}\n')
    return False, f"{DEVICE} opens, but this kernel did not boot with it within {_PATIENCE:g} s"
