"""Kernel parameters of a namespace (sysctl(8), Documentation/networking/ip-sysctl)."""

from __future__ import annotations

from testbed.plain import word
from testbed.steps import Request


class SysctlSet(Request, frozen=True):
    """Set one parameter under /proc/sys, and read it back to compare."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"sysctl -w {word(f'{self.name}={self.value}')}"

    def key(self) -> tuple[str, ...]:
        """Identify what this request overwrites."""
        return (self.name,)

    def path(self) -> str:
        """Return the parameter's file; as in sysctl(8), a slash in the name stands for a dot in the path."""
        return "/proc/sys/" + self.name.translate(str.maketrans("./", "/."))
