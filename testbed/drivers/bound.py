"""The bounds of a lab: its share of the machine's memory, processes and processors."""

from __future__ import annotations

from testbed.steps import Request

_UNITS = ((1 << 30, "gb"), (1 << 20, "mb"), (1 << 10, "kb"), (1, "b"))


class Bound(Request, frozen=True):
    """The most bytes, tasks (processes and threads) and processors that a lab may use; None means no bound."""

    memory: int | None = None
    pids: int | None = None
    cpu: float | None = None

    def __str__(self) -> str:
        return "bound " + " ".join(f"{key}={text}" for key, text in self.stated().items())

    def stated(self) -> dict[str, str]:
        """Return the bounds as a topology file spells them."""
        words = {}
        if self.memory is not None:
            size, unit = next((s, u) for s, u in _UNITS if self.memory % s == 0)
            words["memory"] = f"{self.memory // size}{unit}"
        if self.pids is not None:
            words["pids"] = str(self.pids)
        if self.cpu is not None:
            words["cpu"] = f"{self.cpu:g}"
        return words

    def key(self) -> tuple[str, ...]:
        """Identify what this request overwrites."""
        return ()
