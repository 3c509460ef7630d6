"""Find faults of the kernel in its log (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The first line of every report that says: what follows can't be trusted (lib/bug.c, kernel/panic.c, kernel/rcu,
# kernel/locking/lockdep.c, kernel/watchdog.c, kernel/hung_task.c, mm/kasan, lib/ubsan.c, mm/oom_kill.c, fs/squashfs).
# A lab that is at its own bound is no such report ("Memory cgroup out of memory").
_FAULTS = re.compile(
    r"""
    BUG: | Oops[:\s] | Kernel\ panic | WARNING: | general\ protection\ fault | kernel\ BUG\ at | divide\ error: |
    (?:INFO|possible|inconsistent)[:\s].*(?:lock\ dependency|recursive\ locking|lock\ state|suspicious\ RCU) |
    rcu:\ INFO:.*detected | INFO:\ rcu_.*detected | INFO:\ task\ .*blocked\ for\ more\ than |
    soft\ lockup | hard\ LOCKUP | UBSAN: | KASAN: | Unable\ to\ handle\ kernel | unregister_netdevice:\ waiting |
    refcount_t: | Out\ of\ memory: | list_(?:add|del)\ corruption |
    SQUASHFS\ error:
    """,
    re.VERBOSE,
)
# hwsim's complaint of a frame for a link without a channel: mac80211 sends what is group addressed on every link of an
# AP MLD, also on one that is just being stopped, and hwsim drops that copy; the others arrive.
_LINK_GOES = re.compile(r"WARNING: .*mac80211_hwsim\w*\.c:\d+ at mac80211_hwsim_tx\+")
_STAMP = re.compile(r"^\s*(?:<\d+>)?\[\s*\d+\.\d+\](?:\[\s*[CT]\d+\])?\s*")


def kernel_faults(log: str | Iterable[str]) -> list[str]:
    """Return the lines of a kernel log (dmesg or console) that report a fault of the kernel, without time stamps.

    Only lines with a time stamp count: the console has other text as well.
    """
    rows = log.splitlines() if isinstance(log, str) else log
    faults = []
    for row in rows:
        said = _STAMP.sub("", row.strip("\r"))
        if said != row.strip("\r") and _FAULTS.search(said) and not _LINK_GOES.search(said):
            faults.append(said.strip())
    return faults


def frames_without_channel(log: str) -> int:
    """Return how many frames the simulated radios were given for a link that was coming or going (see kernel log)."""
    return len(_LINK_GOES.findall(log))
