"""The command line of QEMU for a guest, and what a saved guest depends on. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

SLOTS = ("code", "results", "inputs")  # a saved guest has these devices, whatever is shared through them later
_PROGRAM = "qemu-system-x86_64"
# Its own filter of system calls (seccomp(2)): no other program, no other user, no priorities, nothing of old.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# Nothing here is a secret from the host, and an emulated processor pays for every mitigation, every cleared page, every
# statistic of memory and pressure that nobody reads, and the tidying of tables for ftrace and of keys for modules.
# lpj: delay loops as for a clock of 5 GHz, which are long enough on any and are not to be calibrated.
# Warnings of the kernel reach the console: they are faults of a run.
_KERNEL = (
    "console=ttyS0 panic=-1 quiet loglevel=5 random.trust_cpu=on mitigations=off init_on_alloc=0 nokaslr audit=0 "
    "lsm=capability no_timer_check lpj=20000000 cpu_init_udelay=0 psi=0 damon_stat.enabled=0 "
    "initcall_blacklist=trace_eval_init,ftrace_check_for_weak_functions,load_system_certificate_list "
    "tsc=reliable rodata=off no5lvl cryptomgr.notests 8250.nr_uarts=1 rcupdate.rcu_expedited=1 net.ifnames=0"
)


class Size(Struct, frozen=True):
    """The size of a guest: processors, and memory in MiB."""

    cpus: int = 2
    memory: int = 2048

    @classmethod
    def of(cls, nodes: int, cpus: int | None = None, memory: int | None = None) -> Size:
        """Return the size asked for; by default two processors and 2 GiB, or 4 GiB for more than 500 nodes."""
        return cls(cpus or 2, memory or (2048 if nodes <= 500 else 4096))


class Boot(Struct, frozen=True):
    """The files of an image to boot, and QEMU's accelerator (kvm or tcg)."""

    kernel: Path
    initrd: Path
    root: Path
    accel: str


class Share(Struct, frozen=True):
    """A folder of the host and its path in the guest; `only` limits what is shared to these names in it.

    In one that is writable, the guest's owners, modes, links and devices are attributes of plain files here, which are
    QEMU's and have mode 0600. `mapped` says where they are kept: mapped-xattr, or mapped-file without such attributes.
    """

    folder: Path
    at: str
    writable: bool = False
    only: tuple[str, ...] = ()
    mapped: str = "mapped-xattr"


class Wires(Struct, frozen=True):
    """QEMU's ends of its connections: three socket descriptors (-1: no console), and an empty folder."""

    qmp: int = -1
    agent: int = -1
    console: int = -1
    empty: str = ""


class Memory(Struct, frozen=True):
    """The file of a guest's memory: shared while the guest is being saved, private (copied on write) afterwards."""

    file: Path
    private: bool


def argv(
    boot: Boot, size: Size, wires: Wires, shares: Mapping[str, Share], memory: Memory | None, *, incoming: bool = False
) -> tuple[str, ...]:
    """Return the command line of QEMU."""
    backend = f"size={size.memory}M"
    if memory is None:
        backend = f"memory-backend-ram,id=ram,{backend}"
    else:
        sharing = "off" if memory.private else "on"
        backend = f"memory-backend-file,id=ram,{backend},mem-path={_quoted(memory.file)},share={sharing}"
    console = f"socket,id=console,fd={wires.console}" if wires.console >= 0 else "null,id=console"
    words = [
        *(_PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-M", "q35,sata=off,smbus=off,usb=off,vmport=off,memory-backend=ram", "-object", backend),
        *("-accel", "tcg,thread=multi" if boot.accel == "tcg" else boot.accel),
        *("-cpu", "max" if boot.accel == "tcg" else "host"),
        *("-smp", str(size.cpus), "-m", f"{size.memory}M"),
        *("-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", _KERNEL),
        *("-sandbox", _SANDBOX),
        *("-chardev", console, "-serial", "chardev:console"),
        *("-chardev", f"socket,id=qmp,fd={wires.qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=agent,fd={wires.agent}", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,name=testbed"),
        *("-drive", f"if=none,id=root,file={_quoted(boot.root)},format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=root"),
        # restrict: the guest reaches nothing of the host and nothing beyond; only the forwarded port is open.
        *("-netdev", "user,id=net,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-10.0.2.15:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile="),
        # A new generation id makes the kernel of a restored guest draw new random numbers.
        *("-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto"),
    ]
    for slot in SLOTS:
        share = shares.get(slot)
        # What is read-only has no attributes, and its links are the guest's to follow.
        model = share.mapped if share is not None and share.writable else "none,readonly=on"
        folder = _quoted(share.folder if share is not None else wires.empty)
        words += ["-fsdev", f"local,id={slot},path={folder},multidevs=remap,security_model={model}"]
        words += ["-device", f"virtio-9p-pci,fsdev={slot},mount_tag={slot}"]
    return (*words, "-incoming", "defer") if incoming else tuple(words)


def digest(boot: Boot, size: Size, image: str, version: str, processor: str) -> str:
    """Return a digest of everything that a saved guest depends on, without folders of the host and sockets.

    `image` names the image's content, `version` QEMU's, `processor` the host's, which counts when KVM runs on it.
    """
    words = argv(Boot(Path("k"), Path("i"), Path("r"), boot.accel), size, Wires(), {}, None)
    text = "\n".join((*words, image, version, processor if boot.accel == "kvm" else ""))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _quoted(value: Path | str) -> str:
    """Return a value for one of QEMU's comma-separated options, with its commas doubled."""
    return str(value).replace(",", ",,")
