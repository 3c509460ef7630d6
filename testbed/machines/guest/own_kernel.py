"""A kernel of one's own for the guest: read from a bzImage and a folder of modules, and packed as an initramfs."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path

from msgspec import Struct

from testbed.errors import InputError, Unsupported
from testbed.features import Feature
from testbed.machines.guest import recipe
from testbed.machines.guest.booted import unzstd

# What PID 1 of a guest loads before it has a root file system, then what reaches the host. Each is built in or here.
FIRST = ("virtio_pci", "virtio_blk", "squashfs", "overlay", "virtio_console", "virtio_net", "9p", "9pnet_virtio")
# The options that these are, and what else PID 1 needs, which is too early for modules.
_MODULES = (
    *("VIRTIO_PCI", "VIRTIO_BLK", "VIRTIO_NET", "VIRTIO_CONSOLE", "SQUASHFS", "SQUASHFS_LZ4", "OVERLAY_FS", "9P_FS"),
    "NET_9P_VIRTIO",
)
_BUILT_IN = (
    *("BLK_DEV_INITRD", "DEVTMPFS", "TMPFS", "UNIX", "INET", "IPV6", "NET_NS", "PID_NS", "CGROUPS", "FUTEX"),
    *("SERIAL_8250_CONSOLE", "UNIX98_PTYS"),
)
_MOST = 1 << 28  # bytes of a kernel, packed or not
_ROOM = 1 << 28  # bytes of modules, which are in the guest's memory
_PACKED = re.compile(r"\.ko(\.xz|\.gz|\.zst)?$")
# What packs kernels, by how its output begins (scripts/extract-ikconfig).
_UNPACKED: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b\x08", lambda data: zlib.decompressobj(31).decompress(data, _MOST)),
    (b"\xfd7zXZ\0", lambda data: lzma.LZMADecompressor().decompress(data, _MOST)),
    (b"\x5d\0\0\0", lambda data: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data, _MOST)),
    (b"BZh", lambda data: bz2.BZ2Decompressor().decompress(data, _MOST)),
    (b"\x28\xb5\x2f\xfd", lambda data: _zstd(data)),
)


class OwnKernel(Struct, frozen=True):
    """A bzImage, the folder of its modules if it has any, and what the lab requires of it."""

    kernel: Path
    modules: Path | None = None
    requires: tuple[Feature, ...] = ()


class Tree(Struct, frozen=True):
    """A folder of modules: what each file needs, the files by the modules' names, and what is built in."""

    folder: Path
    dependencies: Mapping[str, tuple[str, ...]]
    files: Mapping[str, str]
    built_in: frozenset[str]


class Packed(Struct, frozen=True):
    """What was read: the release, the bzImage, an archive to unpack over the initramfs, and a digest of both."""

    release: str
    kernel: bytes
    archive: bytes
    digest: str


def packed(own: OwnKernel) -> Packed:
    """Read a kernel and its modules; InputError says what is wrong with them, or what they lack for a guest."""
    kernel = _content(own.kernel)
    release = release_of(kernel, own.kernel)
    config = config_of(kernel, own.kernel, release)
    folder = None if own.modules is None else _folder(own.modules, release)
    if config is not None and (missing := list(lacking(config, folder is not None))):
        raise InputError(f"{own.kernel}: a guest can't boot {release}: {'; '.join(missing)}")
    tree = None if folder is None else _tree(folder)
    if needed := without(own.requires, config, None if tree is None else {*tree.files, *tree.built_in}):
        raise InputError(f"{own.kernel}: {release} was built without what the lab needs: {', '.join(needed)}")
    files = {} if tree is None else dict(_modules(tree, release, own))
    if (size := sum(len(content or b"") for content in files.values())) > _ROOM:
        cure = "install them with INSTALL_MOD_STRIP=1, without their debugging information"
        raise InputError(f"{own.modules}: {size >> 20} MiB of modules do not fit into a guest's memory: {cure}")
    archive = cpio({"m/order": b"", "modules": None, **files})
    return Packed(release, kernel, archive, hashlib.sha256(kernel + archive).hexdigest())


def release_of(kernel: bytes, file: Path) -> str:
    """Return the release of a bzImage (Documentation/arch/x86/boot.rst: header, kernel_version)."""
    if kernel[0x202:0x206] != b"HdrS":
        raise InputError(f"{file}: not a bzImage, which is what `make bzImage` writes to arch/x86/boot/bzImage")
    (at,) = struct.unpack_from("<H", kernel, 0x20E)
    words = kernel[0x200 + at : 0x200 + at + 256].split(b"\0", 1)[0].decode(errors="replace").split()
    if not words:
        raise InputError(f"{file}: this bzImage does not state its version")
    return words[0]


def config_of(kernel: bytes, file: Path, release: str) -> Mapping[str, str] | None:
    """Return a kernel's configuration: beside it, where it was built, or in it (CONFIG_IKCONFIG); None if unknown."""
    for beside in (file.parent / f"config-{release}", file.parent / "../../../.config"):
        if beside.is_file():
            return _options(_content(beside))
    plain = _payload(kernel)
    if (begin := plain.find(b"IKCFG_ST")) < 0:
        return None
    return _options(zlib.decompressobj(31).decompress(plain[begin + 8 :], _MOST))


def _options(text: bytes) -> Mapping[str, str]:
    return dict(re.findall(r"^CONFIG_(\w+)=(.*)$", text.decode(errors="replace"), re.M))


def _payload(kernel: bytes) -> bytes:
    """Return the kernel inside a bzImage (boot.rst: setup_sects, payload_offset), b"" if it is packed otherwise."""
    at, length = struct.unpack_from("<II", kernel, 0x248)
    begin = (kernel[0x1F1] + 1) * 512 + at
    data = kernel[begin : begin + length]
    for magic, unpack in _UNPACKED:
        if data.startswith(magic):
            try:
                return unpack(data)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
                return b""
    return b""


def lacking(config: Mapping[str, str], modular: bool) -> Iterator[str]:
    """Yield what a guest needs and a kernel of this configuration does not have."""
    loose = [n for n in _MODULES if config.get(n) == "m" and not modular]
    groups = {
        "it lacks": [n for n in (*_BUILT_IN, *_MODULES) if n not in config],
        "these must be built in": [n for n in _BUILT_IN if config.get(n) == "m"],
        "--modules must give the folder of": loose,
    }
    for what, names in groups.items():
        if names:
            yield f"{what} {', '.join(f'CONFIG_{name}' for name in names)}"


def without(features: Iterable[Feature], config: Mapping[str, str] | None, modules: Set[str] | None) -> list[str]:
    """Return what a lab requires and a kernel does not have, as far as its configuration and its modules say."""
    rows = []
    for feature in features:
        option = re.search(r"a kernel with CONFIG_(\w+)", feature.cure)
        module = next((Path(at).name for at in feature.rests_on if at.startswith("/sys/module/")), None)
        if (option and config is not None and option[1] not in config) or (
            module and modules is not None and module not in modules
        ):
            name = f"CONFIG_{option[1]}" if option else f"module {module}"
            rows.append(f"{feature.name} ({name}, for {feature.purpose})")
    return rows


def cpio(files: Mapping[str, bytes | None]) -> bytes:
    """Return an archive of files, None for a folder, as the kernel unpacks it (early-userspace/buffer-format.rst)."""
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    rows = {**dict.fromkeys(sorted(folders)), **files, "TRAILER!!!": b""}
    out = bytearray()
    for number, (name, content) in enumerate(rows.items(), 1 << 20):  # inodes that the first archive does not have
        mode = 0o040755 if content is None else 0o100644
        data = content or b""
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def closure(dependencies: Mapping[str, tuple[str, ...]], names: Iterable[str]) -> list[str]:
    """Return modules with what they depend on, each after what it needs; names are those of modules.dep."""
    done: dict[str, None] = {}
    for name in names:
        # A line of modules.dep lists what a module needs so that the last one is loaded first (depmod(8)).
        for one in (*reversed(dependencies[name]), name):
            done.setdefault(one)
    return list(done)


def _content(file: Path) -> bytes:
    try:
        with open(file, "rb") as opened:
            data = opened.read(_MOST + 1)
    except OSError as e:
        raise InputError(f"{file}: it can't be read: {e.strerror}") from e
    if len(data) > _MOST:
        raise InputError(f"{file}: it is larger than {_MOST >> 20} MiB, as no kernel is")
    return data


def _folder(modules: Path, release: str) -> Path:
    """Return the folder with modules.dep: the one given, or the release's in it (as `make modules_install` has it)."""
    for folder in (modules / "lib/modules" / release, modules / release, modules):
        if (folder / "modules.dep").is_file():
            return folder
    raise InputError(
        f"{modules}: there is no modules.dep of {release}: give INSTALL_MOD_PATH of `make modules_install`, or a "
        "folder like /lib/modules/RELEASE"
    )


def _tree(folder: Path) -> Tree:
    rows = [row.partition(":") for row in _rows(folder, "modules.dep")]
    dependencies = {file: tuple(needs.split()) for file, _, needs in rows}
    built_in = frozenset(map(_name, _rows(folder, "modules.builtin")))
    return Tree(folder, dependencies, {_name(file): file for file in dependencies}, built_in)


def _modules(tree: Tree, release: str, own: OwnKernel) -> Iterator[tuple[str, bytes | None]]:
    """Yield the files that a guest gets: what it loads first in plain form, and all that labs may load."""
    folder, dependencies, files = tree.folder, tree.dependencies, tree.files
    if missing := [name for name in FIRST if name not in files and name not in tree.built_in]:
        raise InputError(f"{own.modules}: {release} has these neither built in nor as modules: {', '.join(missing)}")
    first = closure(dependencies, [files[name] for name in FIRST if name in files])
    order = []
    for file in first:
        data = _content(_inside(folder, file))
        if b"vermagic=" + release.encode() + b" " not in (plain := _plain(file, data)):
            raise InputError(f"{folder / file}: a module of another kernel than {own.kernel}, which is {release}")
        yield f"m/own-{_name(file)}.ko", plain
        order.append(f"/m/own-{_name(file)}.ko\n")
    yield "m/order", "".join(order).encode()
    wanted = re.compile("|".join(f"kernel/{row}" for row in recipe.modules()) + "|(updates|extra)/")
    for file in closure(dependencies, [file for file in dependencies if wanted.match(file)]):
        yield f"modules/{release}/{file}", _content(_inside(folder, file))
    for index in sorted(folder.glob("modules.*")):
        if index.is_file() and not index.is_symlink():
            yield f"modules/{release}/{index.name}", _content(index)


def _rows(folder: Path, name: str) -> list[str]:
    return _content(folder / name).decode(errors="replace").splitlines()


def _inside(folder: Path, file: str) -> Path:
    if file.startswith("/") or ".." in Path(file).parts:
        raise InputError(f"{folder}/modules.dep: {file} is not in this folder")
    return folder / file


def _name(file: str) -> str:
    return _PACKED.sub("", Path(file).name).replace("-", "_")


def _plain(file: str, data: bytes) -> bytes:
    try:
        match Path(file).suffix:
            case ".xz":
                return lzma.decompress(data)
            case ".gz":
                return gzip.decompress(data)
            case ".zst":
                return _zstd(data)
    except (lzma.LZMAError, OSError, EOFError) as e:
        raise InputError(f"{file}: this module can't be unpacked: {e}") from e
    return data


def _zstd(data: bytes) -> bytes:
    try:
        return unzstd(data)
    except FileNotFoundError as e:
        raise Unsupported("kernels and modules that zstd has packed need zstd: apt-get install zstd") from e
