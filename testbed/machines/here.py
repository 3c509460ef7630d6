"""This kernel as a machine: every feature probed for real, in a scratch namespace that goes with the probe."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from testbed import features, linux, netlink, sandbox, wire
from testbed.drivers import tc
from testbed.drivers.link import BridgeAdd, VethAdd
from testbed.errors import LabError, Unsupported
from testbed.features import Feature
from testbed.mptcp.diag import mptcp_sockets
from testbed.wire import Message

_PATH = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/local/sbin:/usr/sbin:/sbin")))


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a feature is there, and how that is known."""

    feature: Feature
    present: bool
    known: str


def probe(wanted: Iterable[Feature]) -> tuple[Finding, ...]:
    """Return what this machine offers of some features; leaves nothing behind."""
    wanted = tuple(dict.fromkeys(wanted))
    kernel = [f for f in wanted if f.name in _KERNEL or f == features.USERNS]
    seen = _in_scratch([f.name for f in kernel]) if kernel else {}
    found = []
    for feature in wanted:
        if feature.name in seen:
            present, known = seen[feature.name]
        else:
            path = shutil.which(feature.name, path=_PATH)
            present, known = path is not None, path or "not in PATH"
        found.append(Finding(feature, present, known))
    return tuple(found)


def require(wanted: Iterable[Feature]) -> None:
    """Raise Unsupported, naming every feature that is missing, how that is known and how to get it."""
    wanted = tuple(wanted)
    if any(f.name in _KERNEL for f in wanted):
        wanted = (features.USERNS, *wanted)
    missing = [f for f in probe(wanted) if not f.present]
    if missing and missing[0].feature == features.USERNS:
        raise Unsupported(missing[0].known)  # where none of the others could be tried
    if missing:
        rows = [f"feature {f.feature.name} ({f.feature.purpose}): {f.known}; {f.feature.cure}" for f in missing]
        raise Unsupported("\n".join(["this machine lacks what the topology requires; nothing was created", *rows]))


def _in_scratch(names: list[str]) -> dict[str, tuple[bool, str]]:
    """Run kernel probes in a child with namespaces of its own, for setns and a failed unshare can't be undone."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # Whatever happens, a child of somebody's process must never return into that somebody's code.
        try:
            os.close(read)
            os.write(write, json.dumps(_probe_all(names)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        raise LabError("the probe of this kernel's features died; `testbed doctor` shows it again")
    return {name: (bool(present), str(known)) for name, (present, known) in json.loads(said).items()}


def _probe_all(names: list[str]) -> dict[str, tuple[bool, str]]:
    uid, gid = os.geteuid(), os.getegid()
    try:
        linux.unshare(linux.CLONE_NEWNET | (linux.CLONE_NEWUSER if uid else 0))
        if uid:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as e:
        return {**dict.fromkeys(names, (False, f"{e}")), features.USERNS.name: (False, sandbox.why_none(e, uid))}
    found = {}
    for name in names:
        try:
            found[name] = (True, _KERNEL[name]() if name in _KERNEL else "unshare(2) worked")
        except OSError as e:
            found[name] = (False, e.strerror or str(e))
        except LabError as e:
            found[name] = (False, str(e))
    return found


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Stands for the scratch namespace where a request is encoded."""

    def index(self, ifname: str) -> int:
        return 1  # lo

    def claim(self, ifname: str, node: str | None = None) -> int:
        return 0  # the kernel chooses

    def namespace(self, node: str) -> int:
        return os.open("/proc/self/ns/net", os.O_RDONLY)


def _accepted(message: Message, what: str) -> str:
    with netlink.connect(wire.NETLINK_ROUTE) as sock:
        refused = netlink.transact(sock, [message])
    if refused:
        raise OSError(refused[0].errno, f"the kernel refuses {what}: {refused[0]}")
    return f"the kernel accepted {what}"


def _qdisc(kind: str) -> Callable[[], str]:
    def check() -> str:
        special = {"netem": tc.Shape(delay=0.001), "tbf": tc.Shape(rate=10**6)}
        root = tc.shape("lo", special.get(kind, tc.Shape(queue=kind, limit=10000)))[0]
        known = _accepted(root.encode(_Scratch()), f"qdisc {kind}")
        _accepted(tc.QdiscDel(root).encode(_Scratch()), f"the end of qdisc {kind}")  # the next kind has its handle
        return known

    return check


def _veth() -> str:
    pair = VethAdd("probe0", "02:00:00:00:00:01", "probe", "probe1", "02:00:00:00:00:02")
    return _accepted(pair.encode(_Scratch()), "a veth pair")


def _bridge() -> str:
    return _accepted(BridgeAdd("probe2", "02:00:00:00:00:03").encode(_Scratch()), "a bridge")


def _ipv6() -> str:
    if not Path("/proc/net/if_inet6").exists():
        raise OSError(errno.EAFNOSUPPORT, "there is no /proc/net/if_inet6")
    return "/proc/net/if_inet6"


def _mptcp() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, getattr(socket, "IPPROTO_MPTCP", 262)):
        return "an MPTCP socket opened"


def _mptcp_diag() -> str:
    mptcp_sockets(socket.AF_INET)
    return "inet_diag lists MPTCP sockets"


_KERNEL: dict[str, Callable[[], str]] = {
    "veth": _veth,
    "bridge": _bridge,
    "ipv6": _ipv6,
    "mptcp": _mptcp,
    "mptcp-diag": _mptcp_diag,
    **{kind: _qdisc(kind) for kind in features.QDISCS},
}


def versions(tools: Iterable[Feature]) -> dict[str, str]:
    """Return the first line of what each tool says of its version."""
    found = {}
    for tool in tools:
        if (path := shutil.which(tool.name, path=_PATH)) is None:
            continue
        flag = "-V" if tool == features.PING else "--version"
        done = subprocess.run((path, flag), capture_output=True, text=True, check=False, timeout=10)
        rows = (done.stdout or done.stderr).splitlines()
        found[tool.name] = rows[0].strip() if rows else ""
    return found


def commit(folder: Path) -> dict[str, object] | None:
    """Return the git commit that a folder's files are of, and whether they differ from it; None outside of git."""
    if shutil.which("git") is None:
        return None
    asked = ("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10)
    if done.returncode:
        return None
    text = done.stdout.strip()
    return {"commit": text.removesuffix("-dirty"), "dirty": text.endswith("-dirty")}
