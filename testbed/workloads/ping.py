"""Workload `ping`: ICMP echo at a steady interval (ping(8) of iputils)."""

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from pydantic import Field

from testbed import features
from testbed.metrics import table
from testbed.metrics.measured import Measured, latencies
from testbed.metrics.recorded import KIB, MIB, Recorded
from testbed.spec import Spec
from testbed.steps import Spawn, Step
from testbed.units import Moment, Size
from testbed.workloads.place import STALL, Expected, Task

_PAYLOAD = 65507  # 65535 minus the headers of IPv4 and ICMP
# These expressions have a single way to match, so that a damaged line takes no longer than an intact one.
_REPLY = re.compile(
    r"\[(?P<when>\d{1,12}\.\d{1,9})\] \d+ bytes from [^ ]+ icmp_seq=(?P<seq>\d{1,9}) (?:[a-z]+=\d+ )?"
    r"time=(?P<ms>\d{1,9}(?:\.\d{1,9})?) ms(?P<dup> .*DUP)?",
    re.ASCII,
)
_TOTAL = re.compile(r"(?P<sent>\d{1,12}) packets transmitted, (?P<got>\d{1,12}) received\b", re.ASCII)


class Ping(Spec):
    """Echo requests from one node to another for some seconds."""

    from_: str = Field(alias="from")
    to: str
    seconds: Moment = Field(10, gt=0)
    at: Moment = 0.0
    interval: Moment = 0.2
    size: Size | None = Field(None, description="Bytes of payload")
    family: Literal["ipv4", "ipv6"] | None = None
    to_interface: str | None = None

    def seconds_long(self) -> float:
        """Return how long it runs, in seconds."""
        return float(self.seconds)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return (field, node) for every node that it names."""
        return (("from", self.from_), ("to", self.to))

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for each fault."""
        faults = []
        if self.interval < 0.002:
            faults.append(("interval", "ping(8) takes no interval below 2ms"))
        if self.size is not None and self.size > _PAYLOAD:
            faults.append(("size", f"an echo request over IPv4 carries at most {_PAYLOAD} bytes"))
        return faults

    def requires(self) -> tuple[features.Feature, ...]:
        """Return the features that it needs."""
        return (features.PING,)

    def servers(self, task: Task) -> list[Step]:
        """Return no servers: the kernel answers."""
        return []

    def target(self, task: Task) -> str:
        """Return the address that is pinged."""
        family = {"ipv4": 4, "ipv6": 6, None: None}[self.family]
        return task.reach(self.from_, f"{self.to}:{self.to_interface}" if self.to_interface else self.to, family)

    def clients(self, task: Task) -> list[Step]:
        """Return the ping process: it waits a second for the last answers; lost ones do not fail it."""
        target = self.target(task)
        count = max(1, round(self.seconds / self.interval))
        words = ["ping", "-n", "-D", "-c", str(count), "-i", f"{self.interval:g}", "-W", "1"]
        words += ["-s", str(self.size)] if self.size is not None else []
        out = f"{self.from_}/{task.name}.ping.txt"
        name = f"{task.name}.ping"
        # ping exits with status 1 if nothing answers, which is a result and not a failure.
        within = self.seconds + 30
        return [
            Spawn(
                self.from_,
                name,
                (*words, target),
                stdout=out,
                at=self.at,
                within=within,
                may_end=True,
                stop=2,
            )
        ]

    def _said(self, name: str, folder: Recorded) -> list[str]:
        most = 64 * KIB + 200 * max(1, round(self.seconds / self.interval))
        return folder.text(f"{self.from_}/{name}.ping.txt", most, f"the metrics of {name} are missing")

    def failure(self, name: str, folder: Recorded) -> str:
        """Return ping's error if it could not count its packets."""
        lines = folder.text(f"{self.from_}/{name}.ping.log", 64 * KIB, f"what {name} complained about is missing")
        text = "\n".join(lines).strip()
        return f"[{self.from_}] {name}: {text}" if text and not self.read(name, folder) else ""

    def metrics(self) -> tuple[str, ...]:
        """Return the names that `read` gives."""
        return table.names("ping")

    def read(self, name: str, folder: Recorded) -> dict[str, Measured]:
        """Return loss and the percentiles of the round-trip time."""
        lines = self._said(name, folder)
        total = next(filter(None, map(_TOTAL.match, lines)), None)
        if total is None or int(total["got"]) > int(total["sent"]):
            if lines and folder.complete:
                why = "it does not say how many packets were sent and received"
                folder.note(f"{self.from_}/{name}.ping.txt", why, f"the metrics of {name} are missing")
            return {}
        sent, got = int(total["sent"]), int(total["got"])
        replies = list(filter(None, map(_REPLY.match, lines)))
        if folder.window is not None:
            whole, answered = range(1, sent + 1), [r for r in replies if not r["dup"]]
            base = min((_sent(r) - (int(r["seq"]) - 1) * self.interval for r in answered), default=None)
            base = folder.real + self.at if base is None else base
            asked = {n for n in whole if folder.inside(base + (n - 1) * self.interval - folder.real)}
            replies = [r for r in replies if int(r["seq"]) in asked]
            sent, got = len(asked), len({r["seq"] for r in replies})
            if not asked:
                return {}
        metrics = {
            "sent_packets": Measured(sent, "packet"),
            "received_packets": Measured(got, "packet"),
            "loss_pct": Measured(100 * (sent - got) / sent if sent else 100.0, "%"),
            "duplicate_packets": Measured(sum(bool(r["dup"]) for r in replies), "packet"),
        }
        return metrics | latencies([float(r["ms"]) for r in replies if not r["dup"]], "rtt")

    def expectations(self, name: str, folder: Recorded) -> Iterator[Expected]:
        """Yield nothing: its metrics are what checks are of."""
        yield from ()

    def doubts(self, name: str, folder: Recorded) -> Iterator[tuple[float, str, str]]:
        """Yield a doubt if ping did not run for a while: requests then leave late."""
        replies = [r for r in map(_REPLY.match, self._said(name, folder)) if r is not None and not r["dup"]]
        silent = folder.value("neighbours.json", list[str], MIB, "")
        if replies and silent and name in silent:
            seen = "no packet had come to the target and back before t = 0: the first RTTs contain what ARP or ND took"
            yield 0.0, f"the highest RTT of {name}", seen
        sent = [(int(r["seq"]), _sent(r)) for r in replies]
        late = [b - a - (n - m) * self.interval for (m, a), (n, b) in pairwise(sent) if n > m]
        if late and max(late) >= STALL:
            seen = f"ping did not send for {max(late):.1f} s longer than the {self.interval:g} s that it should wait"
            yield max(late), f"loss and RTT of {name}", seen


def _sent(reply: re.Match[str]) -> float:
    """Return when (CLOCK_REALTIME) the request of a reply left."""
    return float(reply["when"]) - float(reply["ms"]) / 1e3
