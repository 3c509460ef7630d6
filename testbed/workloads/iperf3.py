"""Workload `iperf3`: a TCP, UDP or MPTCP flow with a server and a port of its own (iperf3(1)).

MPTCP runs under mptcpize(8) on both sides: iperf3's own --mptcp leaves the control connection plain TCP,
and a test whose control connection dies with its path never ends.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from testbed import features
from testbed.drivers.facts import Listening
from testbed.spec import Spec
from testbed.steps import START, Spawn, Step, Wait
from testbed.units import Rate, Size, Time, Word
from testbed.workloads.place import PERCENTILES, Measured, Task, latencies

_DATAGRAM, _WRITE = 65507, 1 << 20  # bytes: the most that UDP over IPv4 carries, and MAX_BLOCKSIZE of iperf.h
_INTERVAL = 0.1  # seconds; the least that iperf3 knows, and the resolution of gap_s


class Iperf3(Spec):
    """One flow between two nodes for some seconds; `reverse` sends from `to` to `from`."""

    from_: str = Field(alias="from")
    to: str
    protocol: Literal["tcp", "udp", "mptcp"] = "tcp"
    seconds: float = Field(10, gt=0, le=86400)
    at: Time = 0.0
    parallel: int = Field(1, ge=1, le=128, description="Streams; with MPTCP each is a connection of its own")
    rate: Rate | None = Field(None, description="What the sender offers; needed for udp, a ceiling otherwise")
    length: Size | None = Field(None, description="Bytes of one write or datagram")
    reverse: bool = False
    congestion: Word | None = Field(None, description="TCP congestion control algorithm")
    family: Literal["ipv4", "ipv6"] | None = None
    to_interface: str | None = Field(None, description="Connect to this interface's address of `to`")

    def seconds_long(self) -> float:
        """Return how long it runs; iperf3 counts whole seconds."""
        return float(self.seconds)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return the nodes that it names."""
        return (("from", self.from_), ("to", self.to))

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for what can't work."""
        found = []
        if self.protocol == "udp" and self.rate is None:
            found.append(("protocol", "udp needs a `rate`: what the sender offers, such as rate: 5mbit"))
        if self.seconds != int(self.seconds):
            found.append(("seconds", "iperf3 runs for whole seconds: write 5, not 5.5"))
        if self.protocol == "udp" and self.congestion:
            found.append(("congestion", "udp has no congestion control: leave this out"))
        most = _DATAGRAM if self.protocol == "udp" else _WRITE
        if self.length is not None and self.length > most:
            found.append(("length", f"iperf3 sends at most {most} bytes at once over {self.protocol}"))
        return found

    def requires(self) -> tuple[features.Feature, ...]:
        """Return what the machine must offer."""
        if self.protocol == "mptcp":
            return (features.IPERF3, features.MPTCPIZE, features.MPTCP)
        return (features.IPERF3,)

    def _wrapped(self, *argv: str) -> tuple[str, ...]:
        return ("mptcpize", "run", *argv) if self.protocol == "mptcp" else argv

    def servers(self, task: Task) -> list[Step]:
        """Return the server and the wait until it listens."""
        argv = self._wrapped("iperf3", "-s", "-1", "-J", "-i", str(_INTERVAL), "-p", str(task.port))
        name = f"{task.name}.server"
        server = Spawn(self.to, name, argv, stdout=f"{self.to}/{name}.json", may_end=True)
        return [server, Wait(self.to, Listening(task.port), START, name)]

    def clients(self, task: Task) -> list[Step]:
        """Return the client; it may take half a minute longer than its test, then it is killed."""
        family = {"ipv4": 4, "ipv6": 6, None: None}[self.family]
        target = task.reach(self.from_, f"{self.to}:{self.to_interface}" if self.to_interface else self.to, family)
        words = [
            "iperf3",
            "-c",
            target,
            "-p",
            str(task.port),
            "-J",
            "-i",
            str(_INTERVAL),
            "-t",
            str(int(self.seconds)),
        ]
        words += ["-P", str(self.parallel)] if self.parallel > 1 else []
        words += ["-u"] if self.protocol == "udp" else []
        words += ["-b", str(self.rate)] if self.rate is not None else []
        words += ["-l", str(self.length)] if self.length is not None else []
        words += ["-R"] if self.reverse else []
        words += ["-C", self.congestion] if self.congestion else []
        name = f"{task.name}.client"
        out = f"{self.from_}/{name}.json"
        within = self.seconds + 30
        return [Spawn(self.from_, name, self._wrapped(*words), stdout=out, at=self.at, within=within)]

    def failure(self, name: str, folder: Path) -> str:
        """Return iperf3's own error: with -J it exits 0 all the same."""
        client = _json(folder / self.from_ / f"{name}.client.json")
        if not (found := client.get("error")):
            return ""
        seconds = float((client.get("intervals") or [{}])[-1].get("sum", {}).get("end", 0.0))
        server = _json(folder / self.to / f"{name}.server.json").get("error", "no error, or nothing")
        where = f"[{self.from_}] {name}: iperf3 says after {seconds:.1f} s"
        return f"{where}: {found}; its server [{self.to}] says: {server}"

    def metrics(self) -> tuple[str, ...]:
        """Return the names that `read` gives."""
        common = ("goodput_mbps", "received_bytes", "seconds", "gap_s", "gap_at_s")
        if self.protocol == "udp":
            return (*common, "loss_pct", "jitter_ms", "reorder_packets")
        rtts = tuple(f"rtt_{p}_ms" for p in PERCENTILES)
        return (*common, *rtts) if self.protocol == "mptcp" else (*common, "retransmits", *rtts)

    def read(self, name: str, folder: Path) -> dict[str, Measured]:
        """Return goodput from what the receiver received, and what the sender saw of loss and delay."""
        client = _json(folder / self.from_ / f"{name}.client.json")
        server = _json(folder / self.to / f"{name}.server.json")
        sender, receiver = (server, client) if self.reverse else (client, server)
        total = receiver.get("end", {}).get("sum_received" if self.protocol != "udp" else "sum", {})
        seconds = float(total.get("seconds", 0.0))
        if not seconds:
            return {}
        found: dict[str, Measured] = {}
        rows = [i["sum"] for i in receiver.get("intervals", []) if not i["sum"].get("omitted")]
        series = tuple((self.at + float(r["end"]), float(r["bits_per_second"]) / 1e6) for r in _by_second(rows))
        received = sum(int(r["bytes"]) for r in rows)
        found["goodput_mbps"] = Measured(received * 8 / 1e6 / seconds, "Mbit/s", series)
        found["received_bytes"] = Measured(received, "byte")
        found["seconds"] = Measured(seconds, "s")
        length, began = _gap(rows)
        found["gap_s"] = Measured(length, "s", note="longest time in which the receiver got nothing, to 0.1 s")
        found["gap_at_s"] = Measured(self.at + began, "s", note="when it began")
        if self.protocol == "udp":
            lost, packets = float(total.get("lost_packets", 0)), float(total.get("packets", 0))
            found["loss_pct"] = Measured(100 * lost / packets if packets else 100.0, "%")
            found["jitter_ms"] = Measured(float(total.get("jitter_ms", 0.0)), "ms", note="RFC 3550 section 6.4.1")
            streams = receiver.get("end", {}).get("streams", [])
            late = sum(int(s.get("udp", {}).get("out_of_order", 0)) for s in streams)
            found["reorder_packets"] = Measured(late, "packet")
            return found
        streams = [s for i in sender.get("intervals", []) for s in i["streams"]]
        note = "of the first subflow only" if self.protocol == "mptcp" else ""
        if self.protocol != "mptcp":  # TCP_INFO of an MPTCP socket tells of one subflow; the samples have all
            found["retransmits"] = Measured(sum(int(s.get("retransmits", 0)) for s in streams), "segment")
        rtts = [float(s["rtt"]) / 1e3 for s in streams if s.get("rtt")]
        found |= {k: Measured(m.value, m.unit, note=note) for k, m in latencies(rtts, "rtt").items()}
        return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # the client or the server did not live to write it: what it would have said is left out
    return found if isinstance(found, dict) else {}


def _by_second(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the intervals joined to whole seconds."""
    seconds: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        seconds.setdefault(int(float(row["start"]) + 1e-3), []).append(row)
    found = []
    for group in seconds.values():
        start, end = float(group[0]["start"]), float(group[-1]["end"])
        if end - start >= 0.5:  # the last interval may be a few milliseconds long
            size = sum(int(r["bytes"]) for r in group)
            found.append({"end": end, "bits_per_second": size * 8 / (end - start)})
    return found


def _gap(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the length and the beginning of the longest run of intervals without a byte."""
    best, began, current = 0.0, 0.0, None
    for row in rows:
        if int(row["bytes"]):
            current = None
            continue
        current = float(row["start"]) if current is None else current
        if float(row["end"]) - current > best:
            best, began = float(row["end"]) - current, current
    return best, began
