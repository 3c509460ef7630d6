"""The features of this machine, and how each is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from testbed import features
from testbed.errors import Unsupported
from testbed.features import Feature
from testbed.machines.probe import programs, remembered


class Finding(Struct, frozen=True):
    """Whether a feature is present, and how that is known."""

    feature: Feature
    present: bool
    known: str
    remembered: bool = False  # of an earlier probe of this boot


def probe(wanted: Iterable[Feature], fresh: bool = False) -> tuple[Finding, ...]:
    """Return which of some features this machine has, as remembered from this boot unless `fresh`.

    Leaves nothing behind: no interface, radio, qdisc, namespace or process.
    """
    wanted = tuple(dict.fromkeys(wanted))
    worth = [f for f in wanted if f.kernel or f.program]  # a look into PATH or a folder costs less than remembering
    known = {} if fresh or not worth else remembered.recall(worth)
    found = {f: Finding(f, True, how, remembered=True) for f, how in known.items()}
    found |= {f: _ask(f) for f in wanted if not f.kernel and f not in found}
    if rest := [f for f in wanted if f.kernel and f not in found]:
        from testbed.machines.probe import scratch  # with all that speaks netlink, for the first lab of a boot

        seen = scratch.probe(rest)
        found |= {f: Finding(f, *seen[f.name]) for f in rest}
    if new := [found[f] for f in worth if f not in known]:
        remembered.keep({n.feature: n.known for n in new if n.present}, [n.feature for n in new if not n.present])
    return tuple(found[f] for f in wanted)


def _ask(feature: Feature) -> Finding:
    try:
        return Finding(feature, True, programs.ask(feature))
    except OSError as e:
        return Finding(feature, False, e.strerror or str(e))


def require(wanted: Iterable[Feature], fresh: bool = False) -> None:
    """Raise Unsupported with every missing feature, how that is known and how to get it."""
    missing = [f for f in probe(with_namespaces(wanted), fresh) if not f.present]
    if missing:
        raise refusal(missing)


def with_namespaces(wanted: Iterable[Feature]) -> tuple[Feature, ...]:
    """Return some features, and before those of the kernel the right to make namespaces, where they are tried."""
    wanted = tuple(wanted)
    return (features.USERNS, *wanted) if any(f.kernel for f in wanted) else wanted


def refusal(missing: Iterable[Finding]) -> Unsupported:
    """Return the error that says what is missing, how that is known and how to get it."""
    missing = causes(missing)
    if missing[0].feature == features.USERNS:
        return Unsupported(missing[0].known)  # where none of the others could be tried
    rows = [f"feature {f.feature.name} ({f.feature.purpose}): {f.known}; {f.feature.cure}" for f in missing]
    return Unsupported("\n".join(["this machine lacks what the topology requires; nothing was created", *rows]))


def causes(missing: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return what is missing without mere consequences: if the database is missing, so is every channel."""
    missing = tuple(missing)
    unknown = any(f.feature == features.REGDB for f in missing)
    return tuple(f for f in missing if f.feature.channel is None or not unknown)


def cured(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings, each with the cure of what it really lacks: of a channel without the database, the database."""
    found = tuple(found)
    if not any(f.feature == features.REGDB and not f.present for f in found):
        return found
    cure = features.REGDB.cure
    return tuple(replace(f, feature=replace(f.feature, cure=cure)) if f.feature.channel else f for f in found)


def versions(tools: Iterable[Feature]) -> dict[str, str]:
    """Return the first line of each tool's version output."""
    called = {t: t.program or t.name for t in tools if not t.kernel and t.stated is None}
    option = {"ping": "-V", "smcrouted": "-v", "hostapd": "-v", "wpa_supplicant": "-v"}
    present = {t: program for t, program in called.items() if programs.which(program)}
    return {t.name: programs.output(program, option.get(program, "--version")).first for t, program in present.items()}


def commit(folder: Path) -> dict[str, object] | None:
    """Return the git commit of a folder, and whether its files differ from it; None outside of git."""
    if programs.which("git") is None:
        return None
    done = programs.output("git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    if done.status:
        return None
    text = done.out.strip()
    return {"commit": text.removesuffix("-dirty"), "dirty": text.endswith("-dirty")}
