"""What an exception means that is not an error of our own: the machine refused something, or it is a bug."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from testbed.errors import BugError, LabError, TestbedError

# What a system call may answer whatever this program does; any other answer is one that it should have foreseen.
_LACK = {
    errno.EMFILE: "too many files are open (`ulimit -n` says how many may be)",
    errno.ENFILE: "this machine has too many files open",
    errno.ENOMEM: "there is not enough memory",
    errno.EAGAIN: "this user may have no more processes, or the machine no more of them (`ulimit -u`, a cgroup)",
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be too large (`ulimit -f`)",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "input or output failed",
    errno.EACCES: "permission denied",
    errno.EPERM: "the kernel does not permit it",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "too many symbolic links",
}


SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})  # what says nothing of what was asked for


@contextmanager
def foreseen() -> Iterator[None]:
    """Let nothing but errors of ours leave the block, and what ends the program (a signal: SystemExit)."""
    try:
        yield
    finally:
        if (fault := sys.exc_info()[1]) is not None and not isinstance(fault, SystemExit | GeneratorExit):
            # What a library, or a clean-up, made of the end of the program is the end of the program all the same.
            for cause in _causes(fault):
                if isinstance(cause, SystemExit | KeyboardInterrupt):
                    raise cause
            if not isinstance(fault, TestbedError):
                raise known(fault) from fault


def known(fault: BaseException) -> TestbedError:
    """Return the error of ours that tells of an exception."""
    match fault:
        case TestbedError():
            return fault
        case MemoryError():
            return LabError("there is not enough memory (`ulimit -v`, the limit of a cgroup)")
        case ImportError(path=str(path)) if path.endswith(".so"):
            return LabError(f"a library of Python can't be loaded: {fault}")
        case FileNotFoundError() if _stands_nowhere():
            return LabError("the working directory was removed: change to one that exists")
        case OSError(errno=int(number)) if number in _LACK:
            return LabError(words(fault))
    return bug(fault)


def words(fault: OSError) -> str:
    """Return what a system call answered, and what sets the limit where that is known."""
    where = f"{fault.filename}: " if fault.filename else ""
    number = fault.errno or 0
    own = fault.strerror not in (None, os.strerror(number))  # somebody's who knew more
    return f"{where}{fault.strerror if own else _LACK.get(number, fault.strerror or fault)}"


def bug(fault: BaseException) -> BugError:
    """Return what tells of an exception that nobody foresaw."""
    from traceback import format_exception, format_exception_only

    what = format_exception_only(fault)[-1].strip()
    return BugError(f"a bug in testbed: {what}\n{''.join(format_exception(fault)).rstrip()}")


def report() -> str:
    """Return the line that says how a bug is reported."""
    import shlex

    from testbed import __version__

    versions = f"testbed {__version__}, Python {sys.version.split()[0]}, Linux {os.uname().release}"
    return f"please report it with all of the above: {versions}, {shlex.join(('testbed', *sys.argv[1:]))}"


def _causes(fault: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    found: BaseException | None = fault
    while found is not None and found not in seen:
        yield found
        seen.append(found)
        found = found.__cause__ or found.__context__


def _stands_nowhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
