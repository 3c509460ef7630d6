"""Kernel parameters of a namespace, written and read back (sysctl(8), Documentation/networking/ip-sysctl)."""

from __future__ import annotations

from msgspec import Struct

from testbed.plain import word


class SysctlSet(Struct, frozen=True, tag=True):
    """One parameter under /proc/sys; performing it compares what the kernel then says with `value`."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"sysctl -w {word(f'{self.name}={self.value}')}"

    def key(self) -> tuple[str, ...]:
        """Name what this overwrites."""
        return (self.name,)

    def path(self) -> str:
        """Return the file; as in sysctl(8), a slash in a name stands for a dot in the file's."""
        return "/proc/sys/" + self.name.translate(str.maketrans("./", "/."))
