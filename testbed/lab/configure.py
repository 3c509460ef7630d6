"""Perform requests to the kernel and to daemons in order; successive ones for a namespace are sent as a batch."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import cast

from testbed.drivers.bound import Bound
from testbed.drivers.link import NamespaceAdd
from testbed.drivers.mptcp_pm import Manage
from testbed.drivers.nftables import Nft
from testbed.drivers.nl80211 import LOOKING
from testbed.drivers.sysctl import SysctlSet
from testbed.drivers.wpa_ctrl import Control
from testbed.errors import LabError
from testbed.lab import bounds, furniture
from testbed.lab.namespace import create
from testbed.lab.state import Lab, note
from testbed.linux import calls as linux
from testbed.linux import netlink, wire
from testbed.steps import LAB, Configure, Netlink

_NODES_A_PROC = 64
_BATCH = 32768  # bytes in one send: well below the smallest default socket buffer


def configure(lab: Lab, steps: Iterable[Configure]) -> None:
    """Perform requests in order; send successive ones for a namespace as a batch."""
    batch: list[tuple[Configure, wire.Message]] = []
    size = 0
    inside = LAB  # where this process is: creating a namespace leaves it there, which saves the next step a setns

    def flush() -> None:
        nonlocal size
        if batch:
            _send(lab, batch)
            batch.clear()
            size = 0

    with ExitStack() as back:
        back.callback(linux.setns, lab.home, linux.CLONE_NEWNET)
        for step in steps:
            request = step.request
            if isinstance(request, NamespaceAdd):
                flush()
                _add_namespace(lab, request.name)
                inside = request.name
            elif isinstance(request, SysctlSet):
                flush()
                if inside != step.node:
                    linux.setns(lab.space(step.node).fd, linux.CLONE_NEWNET)
                    inside = step.node
                _set_sysctl(lab, step.node, request)
            elif isinstance(request, Bound):
                flush()
                lab.held = bounds.hold(lab.name, request)
            elif isinstance(request, Nft):
                flush()
                _transact(lab, step.node, request)
                inside = LAB
            elif isinstance(request, Control | Manage):
                flush()
                control(lab, step.node, request)
                inside = LAB
            else:
                if isinstance(request, LOOKING):
                    flush()
                    lab.space(step.node).stale = True  # the kernel itself chooses the index of a wireless interface
                message = cast(Netlink, request).encode(lab.space(step.node))
                if batch and (batch[0][0].node != step.node or batch[0][1].family != message.family or size > _BATCH):
                    flush()
                batch.append((step, message))
                size += len(message.body)
                if isinstance(request, LOOKING):
                    flush()  # later requests may refer to its result
                continue
            note(lab, step)
        flush()


def _send(lab: Lab, batch: Sequence[tuple[Configure, wire.Message]]) -> None:
    first, message = batch[0]
    space = lab.space(first.node)
    kind, sock = 0, space.route
    if message.family:
        kind, sock = space.family(message.family), space.generic()
    refused = netlink.transact(sock, [m for _, m in batch], kind)
    failed = {r.at for r in refused}
    for at, (step, _) in enumerate(batch):
        if at not in failed:
            note(lab, step)
    if refused:
        step = batch[refused[0].at][0]
        raise LabError(f"[{step.node}] {step.request}: the kernel says: {refused[0]}")


def _transact(lab: Lab, node: str, request: Nft) -> None:
    with netlink.inside(lab.space(node).fd, lab.home):
        refused = netlink.batch(list(request.messages()))
    if refused is not None:
        raise LabError(f"[{node}] {request}: the kernel says: {refused}")


def _add_namespace(lab: Lab, name: str) -> None:
    try:
        space = lab.nodes[name] = create(name, lab.sockets, lab.nodes, lab.indexes)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            why = "as many as /proc/sys/user/max_net_namespaces allows are there"
            raise LabError(f"[{name}] the kernel makes no more network namespaces: {why}") from e
        raise
    # The symlink suffices for `ip netns` while PID 1 lives, and needs no mount.
    os.symlink(f"/proc/1/fd/{space.fd}", f"/run/netns/{name}")


def _sysctls(lab: Lab, node: str) -> int:
    """Return a descriptor of /proc/sys for the node whose namespace this process is in.

    Use each instance of procfs for a few nodes only: to find a namespace's `net`, the kernel compares those of all
    namespaces looked up in the same instance (fs/proc/proc_sysctl.c: proc_sys_compare), which takes 6 ms a write at
    4000 nodes.
    """
    if lab.sysctls_of != node:
        lab.sysctls_of = node
        lab.sysctls_used += 1
    if lab.sysctls < 0 or lab.sysctls_used > _NODES_A_PROC:
        if lab.sysctls >= 0:
            os.close(lab.sysctls)
        own = f"{furniture.FOLDER}/proc"
        os.makedirs(own, exist_ok=True)
        linux.mount("proc", own, "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        lab.sysctls = os.open(f"{own}/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        linux.detach(own)
        lab.sysctls_used = 1
    return lab.sysctls


def _set_sysctl(lab: Lab, node: str, wanted: SysctlSet) -> None:
    path = wanted.path()
    try:
        fd = os.open(path.removeprefix("/proc/sys/"), os.O_RDWR | os.O_CLOEXEC, dir_fd=_sysctls(lab, node))
        try:
            os.write(fd, wanted.value.encode())
            got = os.pread(fd, 4096, 0).decode()
        finally:
            os.close(fd)
    except FileNotFoundError as e:
        raise LabError(f"[{node}] {wanted}: this kernel has no such parameter in a network namespace ({path})") from e
    except OSError as e:
        raise LabError(f"[{node}] {wanted}: the kernel refuses it: {e.strerror}") from e
    if got.split() != wanted.value.split():
        raise LabError(f"[{node}] {wanted}: accepted, but it reads back as {got.strip()!r}")


def control(lab: Lab, node: str, request: Control | Manage, patience: float = 15.0) -> None:
    """Send a command to a daemon's control socket; raise LabError unless it answers OK."""
    with netlink.inside(lab.space(node).fd, lab.home):  # an abstract address is one of a network namespace
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with sock:
        sock.settimeout(patience)
        try:
            sock.bind("")  # the kernel chooses an abstract address, which leaves no file
            sock.connect(request.path())
            sock.send(request.command.encode())
            while (answer := sock.recv(4096).decode(errors="replace").strip()).startswith("<"):
                pass  # an event
        except OSError as e:
            raise LabError(f"[{node}] {request}: {e.strerror or 'no answer'}") from e
    if answer != "OK":
        raise LabError(f"[{node}] {request}: the daemon answers {answer or 'nothing'}")
