"""Workload `ping`: ICMP echo at a steady interval (ping(8) of iputils)."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from testbed import features
from testbed.spec import Spec
from testbed.steps import Spawn, Step
from testbed.units import Size, Time
from testbed.workloads.place import PERCENTILES, Measured, Task, latencies

_PAYLOAD = 65507  # 65535 less the headers of IPv4 and ICMP
_REPLY = re.compile(r"^\[(?P<when>[0-9.]+)\] .*icmp_seq=(?P<seq>\d+).* time=(?P<ms>[0-9.]+) ms(?P<dup>.*DUP)?", re.M)
_TOTAL = re.compile(r"^(?P<sent>\d+) packets transmitted, (?P<got>\d+) received", re.M)


class Ping(Spec):
    """Echo requests from one node to another for some seconds."""

    from_: str = Field(alias="from")
    to: str
    seconds: float = Field(10, gt=0, le=86400)
    at: Time = 0.0
    interval: Time = 0.2
    size: Size | None = Field(None, description="Bytes of payload")
    family: Literal["ipv4", "ipv6"] | None = None
    to_interface: str | None = None

    def seconds_long(self) -> float:
        """Return how long it runs."""
        return float(self.seconds)

    def ends(self) -> tuple[tuple[str, str], ...]:
        """Return the nodes that it names."""
        return (("from", self.from_), ("to", self.to))

    def faults(self) -> list[tuple[str, str]]:
        """Return (field, sentence) for what can't work."""
        found = []
        if self.interval < 0.002:
            found.append(("interval", "ping(8) takes no interval below 2ms"))
        if self.size is not None and self.size > _PAYLOAD:
            found.append(("size", f"an echo request over IPv4 carries at most {_PAYLOAD} bytes"))
        return found

    def requires(self) -> tuple[features.Feature, ...]:
        """Return what the machine must offer."""
        return (features.PING,)

    def servers(self, task: Task) -> list[Step]:
        """Return nothing: the kernel answers."""
        return []

    def clients(self, task: Task) -> list[Step]:
        """Return the ping process; it waits a second for the last answers, and loss is no failure of it."""
        family = {"ipv4": 4, "ipv6": 6, None: None}[self.family]
        target = task.reach(self.from_, f"{self.to}:{self.to_interface}" if self.to_interface else self.to, family)
        count = max(1, round(self.seconds / self.interval))
        words = ["ping", "-n", "-D", "-c", str(count), "-i", f"{self.interval:g}", "-W", "1"]
        words += ["-s", str(self.size)] if self.size is not None else []
        out = f"{self.from_}/{task.name}.ping.txt"
        name = f"{task.name}.ping"
        # ping exits 1 when nothing answers: that is a measurement here, so any end will do.
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

    def failure(self, name: str, folder: Path) -> str:
        """Return what ping complains about when it could not count its packets."""
        path = folder / self.from_ / f"{name}.ping.log"
        text = path.read_text(errors="replace").strip() if path.exists() else ""
        return f"[{self.from_}] {name}: {text}" if text and not self.read(name, folder) else ""

    def metrics(self) -> tuple[str, ...]:
        """Return the names that `read` gives."""
        return (
            "sent_packets",
            "received_packets",
            "loss_pct",
            "duplicate_packets",
            *(f"rtt_{p}_ms" for p in PERCENTILES),
        )

    def read(self, name: str, folder: Path) -> dict[str, Measured]:
        """Return loss and the percentiles of the round-trip time."""
        path = folder / self.from_ / f"{name}.ping.txt"
        text = path.read_text(errors="replace") if path.exists() else ""
        total = _TOTAL.search(text)
        if total is None:
            return {}
        sent, got = int(total["sent"]), int(total["got"])
        replies = list(_REPLY.finditer(text))
        found = {
            "sent_packets": Measured(sent, "packet"),
            "received_packets": Measured(got, "packet"),
            "loss_pct": Measured(100 * (sent - got) / sent if sent else 100.0, "%"),
            "duplicate_packets": Measured(sum(bool(r["dup"]) for r in replies), "packet"),
        }
        return found | latencies([float(r["ms"]) for r in replies if not r["dup"]], "rtt")
