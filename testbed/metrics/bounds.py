"""Sentences about the effects of a lab's bounds on a run (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from testbed.metrics.records import Held


def unenforced(held: Mapping[str, Held]) -> Iterator[str]:
    """Yield a sentence for each bound that is not enforced."""
    for key, one in held.items():
        if one.unenforced:
            yield f"resources.{key}: {one.bound} is not enforced on this machine: {one.unenforced}"


def doubts(held: Mapping[str, Held]) -> Iterator[tuple[str, str]]:
    """Yield (what is in doubt, why) for the bounds that a run reached, or that were not enforced."""
    for sentence in unenforced(held):
        yield "every figure", sentence
    for key, one in held.items():
        if one.killed:
            yield "everything", f"the kernel killed {one.killed} processes of the lab (resources.{key}: {one.bound})"
        if one.throttled_s:
            what = f"the lab waited {one.throttled_s:.2f} s for processors (resources.{key}: {one.bound})"
            yield "every rate and delay", what
