"""Layout of one results folder: the contract between a run and its report."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msgspec import Struct

from testbed import __version__
from testbed.errors import LabError

_RECORD = re.compile(r"\d+,\d+,(\d+),[^;]*;([^\n]*)")  # Documentation/ABI/testing/dev-kmsg
FORMAT = 1  # of a results folder: which files are in it, and what they mean (docs/results.md)
DERIVED = ("metrics.json", "verdict.json", "junit.xml", "summary.json", "connections.jsonl")


class Folder(Struct, frozen=True):
    """One run's folder."""

    path: Path


def create(root: Path, name: str) -> Folder:
    """Make `<root>/<name>/<time>`, in UTC; LabError when it can't be."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    try:
        (root / name).mkdir(parents=True, exist_ok=True)
        for n in range(1000):
            path = root / name / (stamp + (f".{n}" if n else ""))
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
    except OSError as e:
        raise LabError(f"the results can't be written: {e.filename}: {e.strerror}") from e
    return Folder(path)


def below(folder: Folder, name: str) -> Folder:
    """Make a folder below one of results; LabError when it can't be."""
    path = folder.path / name
    with written(path):
        path.mkdir(parents=True)
    return Folder(path)


def fill(folder: Folder, texts: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """Write the files that a folder begins with, at last manifest.json; without that it would be none of results."""
    with whole(folder):
        for file, text in texts.items():
            with written(folder.path / file):
                (folder.path / file).write_bytes(text.encode())
        write(folder, "manifest.json", about)


@contextmanager
def whole(folder: Folder) -> Iterator[None]:
    """Remove a folder that the body can't fill: without a manifest it is none of results."""
    try:
        yield
    except LabError:
        discard(folder)
        raise


def discard(folder: Folder) -> None:
    """Remove the folder of a run that has left nothing."""
    shutil.rmtree(folder.path, ignore_errors=True)
    with suppress(OSError):  # there are others beside it
        folder.path.parent.rmdir()


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Raise LabError, with the file's name, when the body can't write it."""
    try:
        yield
    except OSError as e:
        raise LabError(f"the results can't be written: {path}: {e.strerror}") from e


def put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; what is there is replaced, and never written through, whatever it is.

    The one folder that it is in is opened once, so that no link that appears meanwhile leads out of it.
    """
    part = f".{path.name}.{secrets.token_hex(8)}"
    with written(path):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(part, made, 0o666, dir_fd=folder)
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                os.rename(part, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                os.unlink(part, dir_fd=folder)
                raise
        finally:
            os.close(folder)


def write(folder: Folder, name: str, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    put(folder.path / name, f"{json_text(content)}\n".encode())


def json_text(content: Any, indent: int | None = 1) -> str:
    """Return content as JSON; ValueError for a number that JSON does not have (RFC 8259 section 6: NaN, infinity)."""
    return json.dumps(content, indent=indent, allow_nan=False)


def manifest(overrides: tuple[str, ...], settings: tuple[str, ...], seed: int, **more: Any) -> dict[str, Any]:
    """Return what a run's circumstances are: `--set` options, the values of its case, and what the caller adds."""
    system = platform.uname()
    return {
        "format": FORMAT,
        "testbed": __version__,
        "python": platform.python_version(),
        "kernel": {"release": system.release, "version": system.version, "architecture": system.machine},
        "host": {"cpus": os.cpu_count(), **_processor(), "user": "root" if os.geteuid() == 0 else "user"},
        "machine": "here",
        "accelerator": None,
        "overrides": list(overrides),
        "settings": list(settings),
        "seed": seed,
        **more,
    }


def _processor() -> dict[str, str]:
    """Return the model of the processor, as far as the kernel says it (/proc/cpuinfo of x86 has one)."""
    with suppress(OSError):
        for row in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, colon, value = row.partition(":")
            if colon and key.strip() == "model name":
                return {"cpu": value.strip()[:200]}
    return {}


def point_latest(folder: Folder) -> None:
    """Let `latest` beside a run's folder point to it, in one step."""
    link = folder.path.parent / f".latest.{os.getpid()}"
    with written(folder.path.parent / "latest"):
        link.unlink(missing_ok=True)
        link.symlink_to(folder.path.name)
        link.rename(folder.path.parent / "latest")


@contextmanager
def kernel_log(folder: Folder) -> Iterator[None]:
    """Keep what the kernel says meanwhile in dmesg.log (dev-kmsg(4)); says why where that is not allowed."""
    out = folder.path / "dmesg.log"
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as e:
        put(out, f"/dev/kmsg can't be read: {e.strerror}\n".encode())
        yield
        return
    try:
        os.lseek(fd, 0, os.SEEK_END)
        try:
            yield
        finally:
            rows = []
            for record in _records(fd):
                if (found := _RECORD.match(record)) is None:
                    rows.append("what follows is not as the kernel writes it (is /dev/kmsg another device?)\n")
                    break
                rows.append(f"[{int(found[1]) / 1e6:.6f}] {found[2]}\n")
            put(out, "".join(rows).encode(errors="replace"))
    finally:
        os.close(fd)


def _records(fd: int) -> Iterator[str]:
    while True:
        try:
            yield os.read(fd, 8192).decode(errors="replace")
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno != errno.EPIPE:  # EPIPE: the ring overwrote some; the next read goes on behind them
                raise
