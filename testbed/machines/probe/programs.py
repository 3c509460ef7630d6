"""Probe programs and files of this machine for features: what programs print about themselves, what files contain."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from testbed.features import Feature
from testbed.machines.probe import regulatory

_PATH = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/local/sbin:/usr/sbin:/sbin")))
_PATIENCE = 10


class Said(Struct, frozen=True):
    """The output of a program that has ended."""

    status: int
    out: str
    err: str

    @property
    def first(self) -> str:
        """Return the first line, of standard output if there is any."""
        return next(iter((self.out.strip() or self.err.strip()).splitlines()), "").strip()


def which(program: str) -> str | None:
    """Return the path of a program, even if PATH lacks the system folders."""
    return shutil.which(program, path=_PATH)


def output(program: str, *words: str, said: str = "") -> Said:
    """Run a program to its end; OSError if it is missing or does not end."""
    if (path := which(program)) is None:
        raise OSError(errno.ENOENT, f"{program} is not in PATH")
    try:
        done = subprocess.run(
            (path, *words), input=said, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired as e:
        raise OSError(errno.ETIMEDOUT, f"{path} did not end within {_PATIENCE} s") from e
    return Said(done.returncode, done.stdout, done.stderr)


def ask(feature: Feature) -> str:
    """Return how it is known that a program or file is present; OSError if it is missing."""
    if (probe := _PROBES.get(feature.name)) is not None:
        return probe()
    if feature.stated is not None:
        key, value = feature.stated
        return {"kernel": _kernel, "counters": _counter, "programs": _program}[key](value)
    if feature.channel is not None:
        return _channel(*feature.channel)
    if (path := which(feature.name)) is None:
        raise OSError(errno.ENOENT, "not in PATH")
    return path


def _kernel(wanted: str) -> str:
    release = os.uname().release
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", release)
    have, least = ([int(n) for n in text.split(".")] for text in (found[0] if found else "0", wanted.lstrip(">= ")))
    if have < least:
        raise OSError(errno.EOPNOTSUPP, f"this kernel is {release}")
    return f"this kernel is {release}"


def _counter(wanted: str) -> str:
    """Look for a counter in the tables of /proc/net, which have a line of names for each group."""
    group, _, name = wanted.partition(".")
    for table in ("netstat", "snmp"):
        rows = Path("/proc/net", table).read_text().splitlines()
        if any(name in row.split()[1:] for row in rows if row.startswith(f"{group}:")):
            return f"/proc/net/{table} has it"
    raise OSError(errno.ENOENT, f"neither /proc/net/netstat nor /proc/net/snmp has {wanted}")


def _program(name: str) -> str:
    if (path := which(name)) is None:
        raise OSError(errno.ENOENT, "not in PATH")
    return path


def _iperf3_mptcp() -> str:
    if "--mptcp" not in output("iperf3", "--help").out:
        raise OSError(errno.EOPNOTSUPP, f"{output('iperf3', '--version').first} has no option --mptcp")
    return "iperf3 --help has --mptcp"


def _hostapd_be() -> str:
    """Make hostapd read an 802.11be setting and then a wrong one, so that it ends before it opens anything."""
    done = output("hostapd", "/proc/self/fd/0", said="mld_ap=1\nno_such_item=1\n")
    if "'no_such_item'" not in done.out:
        raise OSError(errno.EPROTO, f"hostapd was to refuse no_such_item, and said: {done.first}")
    if "'mld_ap'" in done.out:
        raise OSError(errno.EOPNOTSUPP, f"hostapd says: {done.first}")
    return "hostapd reads mld_ap in a configuration"


def _wpa_supplicant_mlo() -> str:
    """2.11 is the first release with MLO stations; its control interface has a command for them then."""
    first = output("wpa_supplicant", "-v").first
    version = re.search(r"v(\d+)\.(\d+)", first)
    if version is None or (int(version[1]), int(version[2])) < (2, 11):
        raise OSError(errno.EOPNOTSUPP, f"{first}: MLO came with 2.11")
    if b"MLO_STATUS" not in Path(which("wpa_supplicant") or "").read_bytes():
        raise OSError(errno.EOPNOTSUPP, f"{first}, and its binary has no MLO_STATUS")
    return f"{first}, and its binary has MLO_STATUS"


def _regulatory_db() -> str:
    """Look where the kernel looks (drivers/base/firmware_loader/main.c: fw_path), for the file and its signature."""
    release = os.uname().release
    for folder in (f"updates/{release}", "updates", release, ""):
        found = Path("/lib/firmware", folder, "regulatory.db")
        if not found.exists():
            continue
        with found.open("rb") as file:
            head = file.read(8)
        if head[:4] != regulatory.MAGIC:
            raise OSError(errno.EPROTO, f"{found} is not a regulatory database")
        if not found.with_name("regulatory.db.p7s").exists():
            raise OSError(errno.ENOENT, f"{found} has no signature beside it (regulatory.db.p7s)")
        return f"{found} and its signature"
    raise OSError(errno.ENOENT, "there is no /lib/firmware/regulatory.db")


def _channel(country: str, freq: int) -> str:
    """Read the database: the kernel itself would refuse only when the access point starts."""
    path = Path(_regulatory_db().partition(" ")[0])
    if why := regulatory.refusal(path.read_bytes(), country, freq):
        raise OSError(errno.EPERM, why)
    return f"{path} allows it"


def _smcroute() -> str:
    return output("smcrouted", "-v").first


_PROBES: dict[str, Callable[[], str]] = {
    "iperf3-mptcp": _iperf3_mptcp,
    "hostapd-11be": _hostapd_be,
    "wpa_supplicant-mlo": _wpa_supplicant_mlo,
    "regulatory-db": _regulatory_db,
    "smcroute": _smcroute,
}
