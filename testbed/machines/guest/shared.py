"""The folders that are shared with a guest, prepared for QEMU in the mount namespace of its keeper."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from msgspec.structs import replace

from testbed.errors import LabError
from testbed.linux import calls as linux
from testbed.machines.guest.qemu import Share

RESERVE = 256 << 20  # bytes that a guest leaves to others on the disk that it writes to
# What an ordinary user may not take from a copy of a mount (mount_namespaces(7)), by the bits of statvfs(3).
_LOCKED = {
    os.ST_NOSUID: linux.MS_NOSUID,
    os.ST_NODEV: linux.MS_NODEV,
    os.ST_NOEXEC: linux.MS_NOEXEC,
    os.ST_NOATIME: 1024,
    os.ST_NODIRATIME: 2048,
    os.ST_RELATIME: linux.MS_RELATIME,
}


def bound(share: Share, at: Path, user: int) -> Share:
    """Return a share whose folder has what QEMU, running as `user`, may see, and nothing else."""
    try:
        at.mkdir(mode=0o755, parents=True)
        if not share.writable:
            for name in share.only:
                _given(share.folder / name, at / name, user)
            if not share.only:
                _mounted(share.folder, at)
            return replace(share, folder=at)
        linux.mount(str(share.folder), str(at), "", linux.MS_BIND)
        _restrict(at, 0)
        if user:
            os.chown(at, user, user)
        return replace(share, folder=at, mapped=_mapping(at))
    except OSError as e:
        raise LabError(f"{share.folder} can't be shared with a guest: {e}") from e


def is_full(at: Path) -> bool:
    """Return whether a guest has filled a disk down to the reserve."""
    found = os.statvfs(at)
    return found.f_bavail * found.f_frsize < RESERVE


def _given(source: Path, at: Path, user: int) -> None:
    """Let QEMU read a folder: the folder itself if its user may read it, otherwise a copy."""
    if user and not _readable(source):
        shutil.copytree(source, at, copy_function=shutil.copyfile)
        for folder, _, files in os.walk(at):
            os.chmod(folder, 0o755)  # noqa: S103 (as `umask 022` makes them)
            for name in files:
                os.chmod(Path(folder, name), 0o644)
        return
    at.mkdir(mode=0o755)
    _mounted(source, at)


def _mounted(source: Path, at: Path) -> None:
    linux.mount(str(source), str(at), "", linux.MS_BIND)
    _restrict(at, linux.MS_RDONLY)


def _readable(source: Path) -> bool:
    """Return whether everybody may read what is in a folder."""
    for folder, _, files in os.walk(source):
        if os.stat(folder).st_mode & 0o005 != 0o005:
            return False
        if not all(os.stat(os.path.join(folder, name)).st_mode & 0o004 for name in files):
            return False
    return True


def _restrict(at: Path, more: int) -> None:
    """Ignore set-user-ID bits and devices on a mount."""
    kept = sum(flag for bit, flag in _LOCKED.items() if os.statvfs(at).f_flag & bit)
    flags = kept | more | linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("none", str(at), "", linux.MS_REMOUNT | linux.MS_BIND | flags)


def _mapping(at: Path) -> str:
    """Return how a guest's file attributes are stored: as extended attributes if the file system has them."""
    try:
        os.setxattr(at, "user.testbed", b"1")
        os.removexattr(at, "user.testbed")
    except OSError:
        return "mapped-file"
    return "mapped-xattr"
