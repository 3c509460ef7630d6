"""Samples of wireless interfaces and frames on the medium -> metrics of links (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testbed.metrics.measured import Measured, percentile
from testbed.metrics.nodes import since
from testbed.metrics.records import Air, Sample, Told, Wlan, WlanLink
from testbed.metrics.table import unit


def wlans(
    names: Mapping[str, dict[int, int]],
    node: str,
    rows: Sequence[Sample],
    told: Sequence[Told],
    frames: Sequence[Air],
    origin: float,
) -> dict[str, Measured]:
    """Return the metrics of links: whether they are active, how well they hear, and their data frames.

    `names` has the planned link IDs of each interface by frequency (MHz): the kernel does not number the one link of a
    station without MLO. `frames` are those on the medium by address; a station gets new addresses at each join.
    """
    counts: dict[str, Measured] = {}
    states = [(r.t, r.wlans) for r in rows if r.wlans is not None]
    first = sum(t <= origin for t, _ in states)
    during = states[max(0, first - 1) :]
    if not during:
        return counts
    heard = since(frames, origin)
    for ifname in during[0][1]:
        ids = names.get(ifname, {})
        seen = [(t - origin, _by_id(w.get(ifname), ids)) for t, w in during]
        active = tuple((t, float(sum(bool(link.freq) for link in links.values()))) for t, links in seen)
        base = f"{node}.{ifname}"
        counts[f"{base}.links"] = Measured(active[-1][1], unit("wlan", "links"), active, "active ones, at the end")
        mine = [e for e in told if e.t > origin]
        if _station([w.get(ifname) for _, w in states]):
            joined = sum(e.joined for e in mine)
            counts[f"{base}.connects"] = Measured(float(joined), unit("wlan", "connects"))
        counts |= _frames(base, [w.get(ifname) for _, w in states], ids, heard)
        for n in sorted({n for _, links in seen for n in links} | set(ids.values())):
            there = [(t, links.get(n)) for t, links in seen]
            on = tuple((t, float(bool(link and link.freq))) for t, link in there)
            counts[f"{base}.link{n}.active"] = Measured(on[-1][1], unit("mlo_link", "active"), on)
            mhz = tuple((t, float(link.freq)) for t, link in there if link and link.freq)
            if mhz:
                counts[f"{base}.link{n}.freq_mhz"] = Measured(mhz[-1][1], unit("mlo_link", "freq_mhz"), mhz)
            for key, name, pick in (("signal", "signal_dbm", _median), ("seen_ms", "seen_max_ms", max)):
                if values := [float(v) for _, link in there if link and (v := getattr(link, key)) is not None]:
                    counts[f"{base}.link{n}.{name}"] = Measured(pick(values), unit("mlo_link", name))
            gone = [e.t - origin for e in mine if e.event == "links_removed" and n in e.links]
            if gone:
                counts[f"{base}.link{n}.removed_at_s"] = Measured(
                    gone[0], unit("mlo_link", "removed_at_s"), note="as nl80211 told the station"
                )
    return counts


def _station(states: Sequence[Wlan | None]) -> bool:
    """Say whether an interface is a station's: only those hear an access point."""
    seen = [w for w in states if w is not None]
    return any(w.station or (w.station is None and any(link.seen_ms is not None for link in w.links)) for w in seen)


def _by_id(wlan: Wlan | None, ids: Mapping[int, int]) -> dict[int, WlanLink]:
    """Return the links of a sample by their planned ID."""
    links = wlan.links if wlan is not None else []
    if wlan is None or not wlan.mlo:  # the kernel does not number it: it is the only planned one
        return {next(iter(ids.values()), 0): link for link in links}
    return {link.id: link for link in links}


def _median(values: list[float]) -> float:
    return percentile(values, 0.5)


def _frames(
    base: str, states: Sequence[Wlan | None], ids: Mapping[int, int], heard: Sequence[Air]
) -> dict[str, Measured]:
    """Return each link's data frames and bytes in both directions; group addressed frames count where they are sent."""
    owner = {link.mac: n for wlan in states for n, link in _by_id(wlan, ids).items()}
    counts: dict[str, Measured] = {}
    if not heard:
        return counts
    first, last = _tally(heard[0], owner), _tally(heard[-1], owner)
    total = 0.0
    for n in dict.fromkeys([*ids.values(), *owner.values()]):
        for way in ("tx", "rx"):
            for what in ("frames", "bytes"):
                value = last.get((n, way, what), 0) - first.get((n, way, what), 0)
                counts[f"{base}.link{n}.{way}_{what}"] = Measured(float(value), unit("mlo_link", f"{way}_{what}"))
                total += value if what == "frames" else 0
    for n in dict.fromkeys([*ids.values(), *owner.values()]):
        own = sum(counts[f"{base}.link{n}.{way}_frames"].value for way in ("tx", "rx"))
        if total:
            counts[f"{base}.link{n}.share_pct"] = Measured(
                100 * own / total, unit("mlo_link", "share_pct"), note="of its data frames"
            )
    return counts


def _tally(row: Air, owner: Mapping[str, int]) -> dict[tuple[int, str, str], int]:
    counts: dict[tuple[int, str, str], int] = {}
    for _, sender, receiver, frames, size in row.frames:
        for way, address in (("tx", sender), ("rx", receiver)):
            if (n := owner.get(address)) is not None:
                for what, value in (("frames", frames), ("bytes", size)):
                    counts[n, way, what] = counts.get((n, way, what), 0) + value
    return counts
