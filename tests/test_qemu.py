"""The words for QEMU, saved guests, and faults in kernel logs: no process is started."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from testbed.linux.kernel_log import frames_without_channel, kernel_faults
from testbed.machines.guest import booted, saved
from testbed.machines.guest.qemu import (
    Boot,
    Memory,
    Share,
    Size,
    Wires,
    argv,
    digest,
)

BOOT = Boot(Path("/i/vmlinux"), Path("/i/initrd.gz"), Path("/i/root.squashfs"), "tcg")
WIRES = Wires(5, 7, 9, "/run/empty")


def pairs(words: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in pairwise(words) if a.startswith("-")]


def test_a_guest_is_reached_by_loopback_only_and_reaches_nothing() -> None:
    (net,) = [v for o, v in pairs(argv(BOOT, Size(), WIRES, {}, None)) if o == "-netdev"]
    assert "restrict=on" in net
    assert "hostfwd=tcp:127.0.0.1:0-" in net


def test_only_a_writable_share_can_be_written_and_every_slot_is_there() -> None:
    shares = {"code": Share(Path("/src"), "/c"), "results": Share(Path("/a,b"), "/r", writable=True)}
    found = [v for o, v in pairs(argv(BOOT, Size(), WIRES, shares, None)) if o == "-fsdev"]
    assert [("readonly=on" in v) for v in found] == [True, False, True]
    assert "path=/a,,b," in found[1], "QEMU splits values at commas"
    assert "path=/run/empty," in found[2]


def test_a_restored_guest_has_the_devices_of_the_saved_one() -> None:
    kept = argv(BOOT, Size(), WIRES, {}, Memory(Path("/s/ram"), private=False))
    restored = argv(
        BOOT, Size(), WIRES, {"results": Share(Path("/r"), "/r", True)}, Memory(Path("/s/ram"), True), incoming=True
    )
    assert [w for o, w in pairs(kept) if o == "-device"] == [w for o, w in pairs(restored) if o == "-device"]
    assert "share=off" in " ".join(restored), "several guests restore from one file"
    assert restored[-2:] == ("-incoming", "defer")


@pytest.mark.parametrize(
    ("boot", "size", "image", "version", "same"),
    [
        (BOOT, Size(), "image", "7.2", True),
        (Boot(Path("/elsewhere"), BOOT.initrd, BOOT.root, "tcg"), Size(), "image", "7.2", True),
        (Boot(BOOT.kernel, BOOT.initrd, BOOT.root, "kvm"), Size(), "image", "7.2", False),
        (BOOT, Size(4), "image", "7.2", False),
        (BOOT, Size(2, 4096), "image", "7.2", False),
        (BOOT, Size(), "another", "7.2", False),
        (BOOT, Size(), "image", "9.0", False),
    ],
)
def test_a_saved_guest_serves_where_everything_is_the_same(
    boot: Boot, size: Size, image: str, version: str, same: bool
) -> None:
    assert (digest(boot, size, image, version, "cpu") == digest(BOOT, Size(), "image", "7.2", "cpu")) is same


def test_the_hosts_processor_counts_only_for_kvm() -> None:
    kvm = Boot(BOOT.kernel, BOOT.initrd, BOOT.root, "kvm")
    assert digest(kvm, Size(), "i", "v", "one") != digest(kvm, Size(), "i", "v", "other")
    assert digest(BOOT, Size(), "i", "v", "one") == digest(BOOT, Size(), "i", "v", "other")


def test_a_saved_guest_with_other_sources_serves_once_and_is_then_made_anew(tmp_path: Path) -> None:
    def waits() -> None:
        raise AssertionError

    def made(code: str) -> Path:
        return saved.find(tmp_path, "d", code) or saved.make(tmp_path, "d", code, fill, waits)

    filled: list[Path] = []
    fill = filled.append
    first = made("one")
    assert made("one") == made("") == first
    assert made("two") == first, "somebody edits"
    assert len(filled) == 1
    assert made("three") == first, "and again"
    assert made("three") == first
    assert len(filled) == 2
    assert made("three") == made("three") == first
    assert (first / "code").read_text() == "three"
    assert len(filled) == 2
    assert [f.name for f in tmp_path.iterdir() if f.is_dir()] == [first.name], "nothing of the old one is left"


def test_sources_at_another_place_are_imported_anew(tmp_path: Path) -> None:
    module = tmp_path / "testbed/cli.py"
    module.parent.mkdir()
    module.write_text("one")
    one = booted.sources(Share(tmp_path, "/testbed"))
    assert booted.sources(Share(tmp_path, "/srv/testbed")) != one, "a module knows where it is"
    module.write_text("other")
    assert booted.sources(Share(tmp_path, "/testbed")) != one


# As kernels said them: a sysrq crash on Debian's 7.2.12 in QEMU; net/mac80211/wpa.c and others from their sources.
FAULTY = """\
[    0.000000] Linux version 7.2.12+deb14-amd64 (debian-kernel@lists.debian.org)
[    0.838012] Spectre V2 : Mitigation: Retpolines
[   61.612004] sysrq: Trigger a crash
[   61.612385] Kernel panic - not syncing: sysrq triggered crash
[   61.613664] CPU: 1 UID: 0 PID: 411 Comm: sh Not tainted 7.2.12+deb14-amd64 #1 PREEMPT(lazy)
"""


def test_a_panic_is_a_fault_and_a_boot_is_none() -> None:
    assert kernel_faults(FAULTY) == ["Kernel panic - not syncing: sysrq triggered crash"]


@pytest.mark.parametrize(
    "said",
    [
        "WARNING: CPU: 0 PID: 12 at net/mac80211/wpa.c:677 ccmp_encrypt_skb+0x1/0x2 [mac80211]",
        "WARNING: net/mac80211/wpa.c:677 at ieee80211_crypto_gcmp_encrypt+0x1/0x2, CPU#1: ksoftirqd/1/21",
        "BUG: kernel NULL pointer dereference, address: 0000000000000010",
        "Oops: Oops: 0002 [#1] SMP NOPTI",
        "WARNING: possible circular locking dependency detected",
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        "rcu: INFO: rcu_preempt self-detected stall on CPU",
        "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python3:77]",
        "INFO: task kworker/0:1:11 blocked for more than 120 seconds.",
        "unregister_netdevice: waiting for lo to become free. Usage count = 2",
        "Out of memory: Killed process 77 (python3) total-vm:1kB",
        "UBSAN: array-index-out-of-bounds in net/core/dev.c:1:2",
        "kernel BUG at mm/slub.c:1!",
        "SQUASHFS error: zstd decompression failed, data probably corrupt",
    ],
)
@pytest.mark.parametrize(
    "stamp", ["[   12.345678] ", "<4>[   12.345678] ", "[   12.345678][  T411] ", "[12345.678901] "]
)
def test_every_kind_of_report_is_found_with_any_stamp(said: str, stamp: str) -> None:
    assert kernel_faults(f"boot\n{stamp}{said}\r\n") == [said]


def test_what_programs_write_on_the_console_is_no_fault_of_the_kernel() -> None:
    assert kernel_faults("WARNING: a program said so\nBUG: it too\n") == []


def test_a_frame_for_a_link_that_goes_is_a_doubt_and_a_frame_without_room_a_fault() -> None:
    going = (
        "[   82.625712] WARNING: drivers/net/wireless/virtual/mac80211_hwsim_main.c:2223 at "
        "mac80211_hwsim_tx+0x6a9/0xa50 [mac80211_hwsim], CPU#1: ksoftirqd/1/25"
    )
    fault = "[   82.7] WARNING: net/mac80211/wpa.c:462 at ieee80211_crypto_ccmp_encrypt+0x2cc/0x2f0 [mac80211]"
    assert (kernel_faults(going), frames_without_channel(going)) == ([], 1)
    assert (len(kernel_faults(fault)), frames_without_channel(fault)) == (1, 0)
