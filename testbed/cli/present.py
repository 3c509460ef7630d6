"""What the command line shows, as text: columns, the report of a run, what is where (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING

from testbed.plain import line

if TYPE_CHECKING:
    from testbed.lab.look import Seen
    from testbed.machines.guest.image import Image
    from testbed.machines.guest.ready import Fact
    from testbed.machines.probe.here import Finding
    from testbed.report.effects import Effect
    from testbed.report.judge import Outcome as Judged
    from testbed.report.report import Report
    from testbed.report.together import Outcome
    from testbed.workloads.multicast import Multicast

_ROWS = 30  # nodes that fit on one screen
_RECEIVERS = 10  # of one multicast workload
_SHOWN = ("received_packets", "loss_pct", "delay_p50_ms", "delay_max_ms", "gap_s", "goodput_mbps")
_LITTLE = 0.05  # % of what a host sent: less than that is not shown
_REQUESTS = 0.02  # of what the host that sends most sent: a host that sends less only asks and acknowledges
_SCREEN, _EVENTS = 60, 16  # rows of a report that shows every metric of its workloads, and of events
_DOUBTS = 20  # rows of its validity, the worst first
_BRIEF = ("goodput_mbps", "loss_pct", "gap_s", "gap_at_s", "rtt_p50_ms", "rtt_p99_ms", "jitter_ms", "retransmits")
_WIDTH, _PURPOSE = 100, 34  # columns of the table of features, and those of what a feature is for


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines with aligned columns; each row is one line, whatever its cells have."""
    rows = [tuple(map(line, row)) for row in rows]
    widths = [max((len(r[n]) for r in rows if n < len(r)), default=0) for n in range(max(map(len, rows), default=0))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def where(found: Mapping[str, Iterable[tuple[str, str]]]) -> str:
    """Return the nodes with their interfaces and addresses; of a large lab the first ones."""
    rows = [(f"  {node}", "  ".join(f"{i} {a or '-'}" for i, a in interfaces)) for node, interfaces in found.items()]
    more = f"\n  ... and {len(rows) - _ROWS} more nodes (`--json` has all)" if len(rows) > _ROWS else ""
    return columns(rows[:_ROWS]) + more


def links(seen: Iterable[Seen]) -> str:
    """Return the links of wireless interfaces, a line each; those of a station with what it hears of them."""
    rows: list[tuple[str, ...]] = []
    for i in seen:
        heard = {b.link_id if i.mld else 0: b for b in i.heard}
        for link in i.links:
            what = f"{'mlo_link' if i.mld else 'link'} {link.id}"
            state = f"{link.freq} MHz" if link.freq else "not active"
            row: tuple[str, ...] = (
                f"  {i.name}",
                what,
                state,
                f"{link.width} MHz wide" if link.freq else "",
                f"address {link.mac}",
            )
            if (bss := heard.get(link.id)) is not None:
                row = (*row, f"bssid {bss.bssid}", f"{bss.signal:g} dBm", f"beacon {bss.seen_ms} ms ago")
            rows.append(row)
    return f"{columns(rows)}\n" if rows else ""


def features(found: Iterable[Finding], width: int = _WIDTH) -> str:
    """Return a table of features in groups: there or not, what for, how that is known; and the cure of what is not."""
    groups: dict[str, list[Finding]] = {}
    for f in found:
        groups.setdefault(f.feature.group, []).append(f)
    every = [f for members in groups.values() for f in members]
    name = max((len(f.feature.name) for f in every), default=0)
    purpose = min(_PURPOSE, max((len(f.feature.purpose) for f in every), default=0))
    rows = []
    for group, members in groups.items():
        rows.append(group)
        rows += [row for f in members for row in _feature(f, name, purpose, width)]
    return "\n".join(rows)


def _feature(found: Finding, name: int, purpose: int, width: int) -> Iterator[str]:
    indent = f"  {'':3}  {'':{name}}  "
    rest = width - len(indent) - purpose - 2
    what = _wrapped(found.feature.purpose, purpose)
    first = f"  {'yes' if found.present else 'NO':3}  {found.feature.name:{name}}  "
    for n, (left, right) in enumerate(zip_longest(what, _wrapped(found.known, rest), fillvalue="")):
        yield f"{indent if n else first}{left:{purpose}}  {right}".rstrip()
    if not found.present:
        cure = _wrapped(f"to get it: {found.feature.cure}", width - len(indent) - 2)
        yield from (f"{indent}  {row}" for row in cure)


def guests(found: Iterable[Fact], width: int = _WIDTH) -> str:
    """Return a table of what a microVM needs."""
    rows = ["microVM"]
    for f in found:
        head = f"  {'yes' if f.present else 'NO' if f.needed else 'no':3}  {f.name:5}  "
        first, *rest = _wrapped(f.known, width - len(head)) or [""]
        rows += [f"{head}{first}", *(f"{'':{len(head)}}{row}" for row in rest)]
        if not f.present and f.cure:
            rows += [f"{'':{len(head)}}  {row}" for row in _wrapped(f.cure, width - len(head) - 2)]
    return "\n".join(rows)


def summary(found: Sequence[Finding], machine: str) -> str:
    """Return how many features a machine has, and the names of those that it lacks."""
    lacking = [f.feature.name for f in found if not f.present]
    without = f"; without {', '.join(lacking)}" if lacking else ""
    return f"machine {machine}: {len(found) - len(lacking)} of {count(len(found), 'feature')}{without}"


def paragraph(text: str, width: int = _WIDTH) -> str:
    """Return a sentence in lines as wide as the table."""
    return "\n".join(_wrapped(text, width))


def _wrapped(text: str, width: int) -> list[str]:
    from textwrap import wrap

    return wrap(text, width, break_on_hyphens=False)


def images(found: Iterable[Image], current: str) -> str:
    """Return a table of a guest's images; a star marks the current recipe's."""
    rows = []
    for image in found:
        size = sum(file["bytes"] for file in image.manifest["files"].values()) / (1 << 20)
        mark = "*" if image.digest == current else " "
        packages = f"{len(image.manifest['packages'])} packages"
        rows.append(
            (mark, image.digest, image.manifest["built"], image.manifest["kernel"], packages, f"{size:.0f} MiB")
        )
    return columns(rows)


def outcome(found: Outcome, place: str) -> str:
    """Return what came of a case: its report, or why there is none."""
    if found.report is not None:
        return report(found.report, place, found.case.title)
    return f"{found.case.title}: error\n\nfailed: {found.error}"


def several(outcomes: Sequence[Outcome], verdict: str, place: str) -> str:
    """Return what several runs came to, a line each, and all; `place` is the folder of all."""
    from testbed.report import together

    rows = [(f"  {o.case.label}", "error" if o.report is None else o.report.verdict) for o in outcomes]
    over = [_check(o) for _, o in together.across(outcomes)]
    checks = f"checks over all repeats\n{columns(over)}\n\n" if over else ""
    return f"{len(rows)} runs: {verdict}\n\n{columns(rows)}\n\n{checks}results in {place}"


def report(found: Report, place: str, title: str = "") -> str:
    """Return the outcome of a run; `place` is its results folder as the user would write it, `title` names its case."""
    title = title or found.topology.name
    whole = "\n\n".join(_sections(found, place, title))
    return whole if whole.count("\n") < _SCREEN else "\n".join(_sections(found, place, title, brief=True))


def _sections(found: Report, place: str, title: str, brief: bool = False) -> Iterator[str]:
    measured: list[Sequence[str]] = []
    tables: list[str] = []
    for name, work in found.topology.workloads.items():
        if work.multicast is not None:
            tables.append(_receivers(found, name, work.multicast))
            continue
        for key in work.workload().metrics():
            if (metric := found.metrics.get(f"{name}.{key}")) is not None:
                measured.append((f"  {name}.{key}", _number(metric.value), metric.unit, metric.note))
    yield f"{title}: {found.verdict}"
    if measured and brief:
        yield f"measured (metrics.json has all)\n{_briefly(found)}"
    elif measured:
        yield f"measured\n{columns(measured)}"
    yield from tables
    if rows := list(_subflows(found)):
        yield f"subflows by interface\n{columns(rows)}"
    if rows := list(_paths(found)):
        yield f"paths by sender\n{columns(rows)}"
    if rows := list(_links(found)):
        yield f"data frames by link\n{columns(rows)}"
    if found.events:
        yield f"events\n{columns([_event(e) for e in found.events[:_EVENTS]])}"
    if found.outcomes:
        yield f"checks\n{columns([_check(o) for o in found.outcomes])}"
    if found.doubts:
        rest = len(found.doubts) - _DOUBTS
        more = f"\n  ... and {rest} more (verdict.json has all)" if rest > 0 else ""
        yield f"validity\n{columns([(f'  {d.what}', d.seen) for d in found.doubts[:_DOUBTS]])}{more}"
    for failure in found.failures:
        yield f"failed: {failure}"
    yield f"results in {place}"


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _briefly(found: Report) -> str:
    """Return a line a workload, with the columns that any of them has."""
    names = [n for n, w in found.topology.workloads.items() if w.multicast is None]
    keys = [k for k in _BRIEF if any(f"{n}.{k}" in found.metrics for n in names)]

    def cell(name: str) -> str:
        return _number(found.metrics[name].value) if name in found.metrics else "-"

    return columns([("", *keys), *((f"  {n}", *(cell(f"{n}.{k}") for k in keys)) for n in names)])


def _subflows(found: Report) -> Iterator[tuple[str, ...]]:
    """Yield what the subflows of each interface of an MPTCP host carried."""
    for name, metric in found.metrics.items():
        node, mark, rest = name.partition(".subflow.")
        ifname, _, field = rest.rpartition(".")
        if not mark or field != "bytes_received":
            continue
        sent = found.metrics[f"{node}.subflow.{ifname}.bytes_acked"].value
        whole = _ran(found, node) or _moved(found, f"{node}.subflow.{ifname}")
        if not (metric.value or sent) or not whole:
            continue
        rates = [
            f"{way} {8e-6 * size / (_ran(found, node, way) or whole):.3f} Mbit/s"
            for way, size in (("in", metric.value), ("out", sent))
        ]
        rtt = found.metrics.get(f"{node}.subflow.{ifname}.rtt_p50_ms")
        yield (f"  {node}.{ifname}", *rates, f"rtt {rtt.value:.1f} ms" if rtt is not None else "")


def _paths(found: Report) -> Iterator[tuple[str, ...]]:
    """Yield what went over each path, as the host that sent it saw it; requests and control packets are none."""
    sent: dict[str, float] = {}
    for name, metric in found.metrics.items():
        node, path, _ = name.partition(".path.")
        if path and name.endswith(".bytes_sent"):
            sent[node] = sent.get(node, 0) + metric.value
    least = _REQUESTS * max(sent.values(), default=0)
    for name, metric in found.metrics.items():
        base, _, field = name.rpartition(".")
        node, path, way = base.partition(".path.")
        if field != "share_pct" or not path or metric.value < _LITTLE or sent.get(node, 0) < least:
            continue

        def value(key: str, base: str = base) -> float | None:
            known = found.metrics.get(f"{base}.{key}")
            return None if known is None else known.value

        opened, closed, here = value("opened_at_s"), value("closed_at_s"), value("opened_here")
        if opened is None:  # a run of an earlier version
            continue
        peer = way.partition("/")[2].partition(":")[0]
        rtt, again = value("rtt_p50_ms"), value("retransmits")
        yield (
            f"  {node}.{way}",
            f"{metric.value:.1f} %",
            f"rtt {rtt:.1f} ms" if rtt is not None else "",
            f"{again:.0f} retransmits" if again is not None else "",
            f"opened at {opened:.2f} s" + ("" if here is None else f" by {node if here else peer}"),
            f"closed at {closed:.2f} s" if closed is not None else "",
            "backup" if value("backup") else "",
        )


def _ran(found: Report, node: str, way: str = "") -> float:
    """Return for how many seconds MPTCP flows of a node ran, also of one way; those at the same time count once."""
    total = end = 0.0
    flows = [(name, flow) for name, w in found.topology.workloads.items() if (flow := w.mptcp()) is not None]
    spans = []
    for name, flow in flows:
        seconds, start = (found.metrics.get(f"{name}.{key}") for key in ("seconds", "start_s"))
        source, sink = (flow.to, flow.from_) if flow.reverse else (flow.from_, flow.to)
        if node in {"in": (sink,), "out": (source,), "": (sink, source)}[way] and seconds is not None:
            began = flow.at if start is None else start.value
            spans.append((began, began + seconds.value))
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, end))
        end = max(end, ended)
    return total


def _moved(found: Report, base: str) -> float:
    """Return for how many seconds subflows carried something, to the length of a sample."""
    series = [found.metrics[f"{base}.{key}"].series for key in ("bytes_received", "bytes_acked")]
    both = [(t, a + b) for (t, a), (_, b) in zip(*series, strict=True)]
    grown = [(a[0], b[0]) for a, b in pairwise(both) if b[1] > a[1]]
    return grown[-1][1] - grown[0][0] if grown else 0.0


def _links(found: Report) -> Iterator[tuple[str, ...]]:
    """Yield the data frames of each link of a wireless interface in both directions."""
    for name, metric in found.metrics.items():
        if not name.endswith(".tx_frames"):
            continue
        base = name.removesuffix(".tx_frames")
        mhz, share = found.metrics.get(f"{base}.freq_mhz"), found.metrics.get(f"{base}.share_pct")
        yield (
            f"  {base}",
            f"{mhz.value:.0f} MHz" if mhz is not None else "",
            f"tx {metric.value:.0f}",
            f"rx {found.metrics[f'{base}.rx_frames'].value:.0f}",
            f"{share.value:.0f} %" if share is not None else "",
        )


def _event(e: Effect) -> tuple[str, ...]:
    if e.effect is None:
        return (f"  {e.at:g} s", e.what, "not seen to take effect" if e.performed is not None else "not performed")
    return (f"  {e.at:g} s", e.what, f"took effect at {e.effect:.2f} s")


def _receivers(found: Report, name: str, work: Multicast) -> str:
    """Return a line for the source of a multicast workload and one for each receiver, those that lost most first."""

    def value(key: str) -> str:
        metric = found.metrics.get(f"{name}.{key}")
        return "-" if metric is None else f"{metric.value:.3f}".rstrip("0").rstrip(".")

    def loss(node: str) -> float:
        metric = found.metrics.get(f"{name}.{node}.loss_pct")
        return -101.0 if metric is None else -metric.value

    head = f"{name}: {value('sent_packets')} packets from {work.source} to {work.group}"
    nodes = sorted((r.node for r in work.receivers), key=loss)
    rows = [("", *_SHOWN), *((f"  {n}", *(value(f"{n}.{key}") for key in _SHOWN)) for n in nodes[:_RECEIVERS])]
    more = f"\n  ... and {len(nodes) - _RECEIVERS} more receivers (metrics.json has all)"
    return f"{head}\n{columns(rows)}{more if len(nodes) > _RECEIVERS else ''}"


def _check(o: Judged) -> tuple[str, ...]:
    value = "-" if o.value is None else f"{o.value:.6g} {o.unit}".strip()
    return ("  pass" if o.passed else "  FAIL", o.metric, o.expected, value, o.why)


def count(number: int, what: str) -> str:
    """Return a number of things, in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"
