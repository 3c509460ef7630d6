"""A kernel of one's own: what is read from its files, and what is said of those that can't serve a guest."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from testbed import features
from testbed.errors import InputError
from testbed.machines.guest import own_kernel
from testbed.machines.guest.own_kernel import OwnKernel, closure, config_of, cpio, lacking, packed, release_of, without

RELEASE = "6.18.0-mine"
EVERYTHING = dict.fromkeys(
    (
        *("BLK_DEV_INITRD", "DEVTMPFS", "TMPFS", "UNIX", "INET", "IPV6", "NET_NS", "PID_NS", "CGROUPS", "FUTEX"),
        *("SERIAL_8250_CONSOLE", "UNIX98_PTYS", "VIRTIO_PCI", "VIRTIO_BLK", "VIRTIO_NET", "VIRTIO_CONSOLE"),
        *("SQUASHFS", "SQUASHFS_LZ4", "OVERLAY_FS", "9P_FS", "NET_9P_VIRTIO", "MPTCP"),
    ),
    "y",
)


def text_of(config: dict[str, str]) -> bytes:
    return "".join(f"CONFIG_{name}={value}\n" for name, value in config.items()).encode()


def bzimage(config: dict[str, str] | None = None, release: str = RELEASE) -> bytes:
    """Return the parts of a bzImage that are read: its header, its version and, packed, its configuration."""
    inside = (
        b"kernel" if config is None else b"kernel IKCFG_ST" + zlib.compress(text_of(config), wbits=31) + b"IKCFG_ED"
    )
    payload = zlib.compress(inside, wbits=31)
    image = bytearray(1024)
    image[0x1F1] = 1  # setup_sects: the protected-mode kernel begins at 1024
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x100)
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    words = f"{release} (me@here) #1 SMP".encode()
    image[0x300 : 0x300 + len(words)] = words
    return bytes(image) + bytes(16) + payload


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "boot/bzImage"


def written(file: Path, content: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_the_release_and_the_configuration_are_those_in_the_kernel(file: Path) -> None:
    image = bzimage({"MPTCP": "y", "SQUASHFS": "m", "LOCALVERSION": '"-mine"'})
    assert release_of(image, file) == RELEASE
    assert config_of(image, file, RELEASE) == {"MPTCP": "y", "SQUASHFS": "m", "LOCALVERSION": '"-mine"'}
    assert config_of(bzimage(), file, RELEASE) is None, "unknown, not empty"


@pytest.mark.parametrize("at", ["boot/config-6.18.0-mine", ".config"])
def test_a_configuration_beside_the_kernel_counts(tmp_path: Path, at: str) -> None:
    file = written(tmp_path / ("boot/bzImage" if at != ".config" else "arch/x86/boot/bzImage"), bzimage())
    (tmp_path / at).write_bytes(b"# CONFIG_AMT is not set\nCONFIG_MPTCP=y\n")
    assert config_of(file.read_bytes(), file, RELEASE) == {"MPTCP": "y"}


def test_what_a_guest_needs_is_named_by_what_must_be_done() -> None:
    assert list(lacking(EVERYTHING, modular=False)) == []
    short = {**EVERYTHING, "TMPFS": "m", "SQUASHFS": "m"}
    del short["NET_9P_VIRTIO"]
    assert list(lacking(short, modular=False)) == [
        "it lacks CONFIG_NET_9P_VIRTIO",
        "these must be built in CONFIG_TMPFS",
        "--modules must give the folder of CONFIG_SQUASHFS",
    ]


def test_what_the_lab_needs_is_looked_for_in_the_configuration_and_among_the_modules() -> None:
    needs = (features.QDISCS["bfifo"], features.VETH)
    assert without(needs, None, None) == [], "nothing is known of it: its guest is asked"
    assert without(needs, {"NET_SCHED": "y"}, {"veth"}) == []
    assert without(needs, {"NET": "y"}, {"bridge"}) == [
        "bfifo (CONFIG_NET_SCHED, for queue limits in bytes)",
        "veth (module veth, for links)",
    ]


def test_a_module_comes_after_all_that_it_needs() -> None:
    # depmod(8) lists what a module needs from the nearest to the farthest.
    needs = {"a": ("b", "c"), "b": ("c",), "c": (), "d": ("c",)}
    assert closure(needs, ["a", "d"]) == ["c", "b", "a", "d"]


def test_an_archive_is_what_the_kernel_unpacks() -> None:
    archive = cpio({"m/order": b"/m/a.ko\n", "modules": None})
    names, at = [], 0
    while at < len(archive):
        head = archive[at : at + 110]
        assert head[:6] == b"070701"
        mode, size, length = (int(head[n : n + 8], 16) for n in (14, 54, 94))
        names.append((archive[at + 110 : at + 109 + length].decode(), oct(mode)))
        at = (at + 110 + length + 3) // 4 * 4
        at = (at + size + 3) // 4 * 4
    assert names == [
        *(("m", "0o40755"), ("m/order", "0o100644"), ("modules", "0o40755"), ("TRAILER!!!", "0o100644")),
    ]


def test_a_kernel_that_has_everything_needs_no_modules(file: Path) -> None:
    read = packed(OwnKernel(written(file, bzimage(EVERYTHING))))
    assert (read.release, b"m/order" in read.archive) == (RELEASE, True)


def modules(folder: Path, rows: str, built_in: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text(rows)
    (folder / "modules.builtin").write_text(built_in)
    return folder


@pytest.mark.parametrize(
    ("content", "rows", "says"),
    [
        (b"\x7fELF" + bytes(2000), None, "not a bzImage, which is what `make bzImage` writes"),
        (b"", None, "not a bzImage"),
        (bzimage({"MPTCP": "y"}), None, f"a guest can't boot {RELEASE}: it lacks CONFIG_BLK_DEV_INITRD, "),
        (bzimage({**EVERYTHING, "9P_FS": "m"}), None, "--modules must give the folder of CONFIG_9P_FS"),
        (bzimage(), "kernel/a.ko:\n", f"{RELEASE} has these neither built in nor as modules: virtio_pci, virtio_blk"),
        (bzimage(), "../../etc/squashfs.ko:\n", "../../etc/squashfs.ko is not in this folder"),
        (bzimage(), "kernel/squashfs.ko:\n", "a module of another kernel"),
    ],
    ids=["ELF", "empty", "small", "modular", "without", "outside", "foreign"],
)
def test_what_is_wrong_with_a_kernel_is_said_before_anything_boots(
    tmp_path: Path, content: bytes, rows: str | None, says: str
) -> None:
    file, folder = written(tmp_path / "bzImage", content), None
    if rows is not None:
        others = [name for name in own_kernel.FIRST if name not in rows] if "squashfs" in rows else []
        folder = modules(tmp_path / "modules", rows, "".join(f"kernel/{name}.ko\n" for name in others))
        (folder / "kernel").mkdir()
        (folder / "kernel/squashfs.ko").write_bytes(b"vermagic=6.1.0 SMP \0")
    with pytest.raises(InputError) as caught:
        packed(OwnKernel(file, folder))
    assert says in str(caught.value)


def test_modules_of_another_release_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    modules(tmp_path / "all/lib/modules/6.1.0", "")
    with pytest.raises(InputError, match=r"there is no modules\.dep of 6\.18\.0-mine"):
        packed(OwnKernel(written(tmp_path / "bzImage", bzimage()), tmp_path / "all"))


def test_a_lab_that_needs_more_is_refused_with_what_that_is(file: Path) -> None:
    kernel = OwnKernel(written(file, bzimage(EVERYTHING)), requires=(features.QDISCS["bfifo"],))
    with pytest.raises(InputError, match=r"was built without what the lab needs: bfifo \(CONFIG_NET_SCHED"):
        packed(kernel)
