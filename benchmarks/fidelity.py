"""How near rates, delays, losses, traces and the bytes of paths come to what a file says, as the wire has them.

    python benchmarks/fidelity.py [--parts rate,delay,loss,trace,paths] [--machine here|microvm] [--rates 64kbit,...]

Second sources: packets that dumpcap saw at the receiving interface (their times, and their bytes with the headers of
every segment), and closed forms. Parts:

    rate     frames and their bytes, from when the first bucket is spent to the last full frame, at least 200 frames:
             TCP and MPTCP 1 %, UDP 3 %. In a guest rates grow until its processors are 80 % busy.
    delay    median RTT of 1000 pings: the larger of 5 % and 0.3 ms (needs netem)
    loss     10 000 numbered packets: the binomial interval of 99.9 %; and which are lost is the same again with the
             same `seed` (needs netem)
    trace    bytes at a link whose rate changes every 10 ms: 1 %, with full and with short frames, and with outages
    paths    payload that left on each path of MPTCP: 1 %

A part that the machine can't do is named and left out. Exit status 1: a figure is outside; 2: something could not be
measured. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import ceil, comb, exp, inf, log
from pathlib import Path
from typing import Any

from bringup import environment, give_up, names

PARTS = ("rate", "delay", "loss", "trace", "paths")
PROTOCOLS = {"tcp": 0.01, "mptcp": 0.01, "udp": 0.03}
RATES = {
    "here": ("64kbit", "256kbit", "1mbit", "10mbit", "100mbit", "300mbit", "1gbit"),
    "microvm": ("64kbit", "256kbit", "1mbit", "10mbit", "20mbit", "50mbit", "100mbit", "200mbit"),
}
UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
TOGETHER = 2e6  # bit/s up to which links are measured at once
FRAME, HEADERS = 1514, 34  # bytes of a full frame, and of Ethernet's and IPv4's headers
LEAST = 200  # frames in a window
BUSY = 80.0  # %
DELAYS = (1, 10, 50, 200)  # ms, each way
LOSSES = (0.001, 0.01, 0.1)
PACKETS = 10_000


@dataclass(frozen=True)
class Row:
    """A figure, what it should be, and how far from that it may be."""

    part: str
    what: str
    measured: float
    expected: float
    low: float
    high: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether it is within its bounds."""
        return self.low <= self.measured <= self.high

    def __str__(self) -> str:
        off = f"{100 * (self.measured / self.expected - 1):+8.2f} %" if self.expected else " " * 10
        bounds = f"{self.low:.6g} .. {self.high:.6g} {self.unit}"
        numbers = f"{self.measured:12.6g}{self.expected:12.6g}{off}"
        return f"{'PASS' if self.met else 'FAIL'}  {self.part:6}{self.what:44}{numbers}  {bounds}"


def within(part: str, what: str, measured: float, expected: float, share: float, unit: str) -> Row:
    """Return a row whose bounds are a share of what is expected."""
    return Row(part, what, measured, expected, expected * (1 - share), expected * (1 + share), unit)


@dataclass(frozen=True)
class Frame:
    """What was seen of a packet; one that the kernel has not split yet is as many frames as it will be."""

    t: float
    frames: int
    bytes: int
    payload: int


@dataclass(frozen=True)
class Ran:
    """The results of a run."""

    folder: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """Its metrics."""
        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return found

    @property
    def origin(self) -> float:
        """Its t = 0 on the clock of captures."""
        return float(json.loads((self.folder / "run.json").read_text())["time"])

    def fields(self, node: str, interface: str, chosen: str, *wanted: str) -> list[list[str]]:
        """Return fields of captured packets."""
        words = ["tshark", "-n", "-r", str(self.folder / node / f"{interface}.pcapng"), "-Y", chosen, "-T", "fields"]
        words += ["-o", "tcp.desegment_tcp_streams:FALSE"]
        for name in wanted:
            words += ["-e", name]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return [row.split("\t") for row in done.stdout.splitlines()]

    def frames(self, node: str, interface: str, source: str) -> list[Frame]:
        """Return what came from an address."""
        wanted = ("frame.time_epoch", "frame.len", "tcp.hdr_len", "tcp.len")
        found = []
        for t, length, header, payload in self.fields(node, interface, f"ip.src == {source}", *wanted):
            size, data = int(length), int(payload or 0)
            each = FRAME - HEADERS - int(header or 0)
            count = max(1, ceil(data / each)) if header else 1
            found.append(Frame(float(t), count, size + (count - 1) * (FRAME - each), data))
        return found

    def busy(self, began: float, ended: float) -> float:
        """Return how busy all processors were between two times of the run (%)."""
        series = self.metrics["machine.cpu_max_pct"]["series"]
        return statistics.fmean(v for t, v in series if began <= t <= ended)


@dataclass(frozen=True)
class Bench:
    """Where runs take place, and where their files go."""

    machine: str
    folder: Path

    def run(self, name: str, text: str) -> Ran:
        """Run a file; what failed in it, such as a flow that did not end in time, is told and is not the end."""
        file = self.folder / f"{name}.yaml"
        file.write_text(text)
        words = ("run", str(file), "--machine", self.machine, "--results", str(self.folder / name))
        done = subprocess.run(
            (sys.executable, "-m", "testbed", *words), capture_output=True, text=True, env=environment(), check=False
        )
        found = sorted((self.folder / name).glob("*/latest"))
        if not found or not (found[0] / "metrics.json").exists():
            give_up(f"{name}: {done.stderr or done.stdout}")
        if done.returncode not in (0, 1):
            print(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
        return Ran(found[0])


def rate_of(text: str) -> float:
    """Return a rate in bit/s."""
    unit = next((u for u in UNITS if text.endswith(u)), "")
    if not unit:
        give_up(f"{text!r} is not a rate: kbit, mbit or gbit")
    return float(text.removesuffix(unit)) * UNITS[unit]


# ---- rate ------------------------------------------------------------------------------------------------


def seconds(rate: float) -> int:
    """Return how long a flow must be: its first bucket, and half as many frames again as the window needs."""
    return max(6, ceil(1.6 * LEAST * 8 * FRAME / rate))


@dataclass(frozen=True)
class Flow:
    """A flow through links of its own."""

    number: int
    rate: str
    protocol: str

    @property
    def links(self) -> range:
        """The numbers of its links."""
        return range(2 if self.protocol == "mptcp" else 1)

    def address(self, link: int, end: int) -> str:
        """Return the address of an end of a link."""
        return f"10.{self.number}.{link}.{end}"

    def nodes(self) -> str:
        """Return its nodes."""
        role = "mptcp: {endpoints: [{interface: eth1}]}" if self.protocol == "mptcp" else ""
        far = "mptcp: {}" if self.protocol == "mptcp" else ""
        return f"  a{self.number}: {{{role}}}\n  b{self.number}: {{{far}}}\n"

    def wires(self) -> str:
        """Return its links."""
        rows = []
        for n in self.links:
            ends = f"[a{self.number}:eth{n}, b{self.number}:eth{n}]"
            addresses = f"[{self.address(n, 1)}/24, {self.address(n, 2)}/24]"
            # The default queue holds a hundred frames: 19 s at 64 kbit/s, in which MPTCP leaves the other path idle.
            queue = ", queue: {limit: 60kb}" if rate_of(self.rate) <= TOGETHER else ""
            rows.append(f"  - {{ends: {ends}, addresses: {addresses}, rate: {self.rate}{queue}}}\n")
        return "".join(rows)

    def work(self) -> str:
        """Return its workload: what is offered over UDP is half as much again as the link lets through."""
        bits = rate_of(self.rate)
        own = f"rate: {1.5 * bits / 1e3:g}kbit, length: 1472b" if self.protocol == "udp" else "congestion: cubic"
        words = f"from: a{self.number}, to: b{self.number}, protocol: {self.protocol}, seconds: {seconds(bits)}, {own}"
        return f"  f{self.number}: {{iperf3: {{{words}}}}}\n"

    def rows(self, ran: Ran) -> Iterator[Row]:
        """Yield the rate of each of its links."""
        bits = rate_of(self.rate)
        ended = ran.origin + seconds(bits)
        for n in self.links:
            frames = ran.frames(f"b{self.number}", f"eth{n}", self.address(n, 1))
            found = spent(frames, bits)
            window = [f for f in frames if f.t >= found and f.t <= ended]
            count = sum(f.frames for f in window[1:])
            what = f"{self.protocol} {self.rate}" + (f" path {n}" if len(self.links) > 1 else "")
            if count < LEAST:
                print(f"rate: {what}: {count} frames after the first bucket was spent, and {LEAST} are needed")
                yield Row("rate", f"{what}, frames of the window", count, LEAST, LEAST, inf, "")
                continue
            measured = 8 * sum(f.bytes for f in window[1:]) / (window[-1].t - window[0].t)
            yield within(
                "rate", f"{what}, {count} frames", measured / 1e6, bits / 1e6, PROTOCOLS[self.protocol], "Mbit/s"
            )


def spent(frames: Sequence[Frame], rate: float) -> float:
    """Return when the bucket of a link is empty for the first time, as what left it says."""
    bucket = max(10 * FRAME, rate / 8 / 250)
    level, last = bucket, frames[0].t if frames else 0.0
    for f in frames:
        level, last = min(bucket, level + (f.t - last) * rate / 8) - f.bytes, f.t
        if level < FRAME:
            return f.t
    return inf


def lab(name: str, flows: Sequence[Flow]) -> str:
    """Return a file with these flows at once, each of whose receivers is captured."""
    return (
        f"name: {name}\nfamilies: [ipv4]\nnodes:\n{''.join(f.nodes() for f in flows)}"
        f"links:\n{''.join(f.wires() for f in flows)}workloads:\n{''.join(f.work() for f in flows)}"
        'capture: [{interfaces: "b*:*", snaplen: 96}]\n'
    )


def rates(bench: Bench, wanted: Sequence[str]) -> Iterator[Row]:
    """Yield the rate of each protocol at each rate: the low ones at once, the others one by one."""
    flows = [Flow(n, rate, protocol) for n, (rate, protocol) in enumerate((r, p) for r in wanted for p in PROTOCOLS)]
    low = [f for f in flows if rate_of(f.rate) <= TOGETHER]
    if low:
        ran = bench.run("low", lab("low", low))
        for flow in low:
            yield from flow.rows(ran)
    full: set[str] = set()
    highest: dict[str, str] = {}
    for flow in flows:
        if flow in low or flow.protocol in full:
            continue
        ran = bench.run(f"{flow.protocol}-{flow.rate}", lab("high", [flow]))
        busy = ran.busy(1, seconds(rate_of(flow.rate)) - 1)
        if bench.machine != "here" and busy >= BUSY:
            full.add(flow.protocol)
            print(f"rate: {flow.protocol} {flow.rate}: its processors are {busy:.0f} % busy, which is no fair measure")
            continue
        highest[flow.protocol] = f"{flow.rate} ({busy:.0f} % busy)"
        yield from flow.rows(ran)
    if highest:
        print("rate: the highest that was measured: " + ", ".join(f"{p} {r}" for p, r in highest.items()))


# ---- delay and loss --------------------------------------------------------------------------------------


def pairs(name: str, links: Sequence[str], ping: str, more: str = "") -> str:
    """Return a file with a ping over each of some links."""
    numbers = range(len(links))
    nodes = ", ".join(f"a{n}: {{}}, b{n}: {{}}" for n in numbers)
    wires = "".join(
        f"  - {{ends: [a{n}:eth0, b{n}:eth0], addresses: [10.9.{n}.1/24, 10.9.{n}.2/24], {links[n]}}}\n"
        for n in numbers
    )
    works = "".join(f"  p{n}: {{ping: {{from: a{n}, to: b{n}, {ping}}}}}\n" for n in numbers)
    return f"name: {name}\nfamilies: [ipv4]\nnodes: {{{nodes}}}\nlinks:\n{wires}workloads:\n{works}{more}"


def delays(bench: Bench) -> Iterator[Row]:
    """Yield the median RTT over links of each delay."""
    found = bench.run("delay", pairs("delay", [f"delay: {d}ms" for d in DELAYS], "seconds: 20, interval: 20ms")).metrics
    for n, delay in enumerate(DELAYS):
        allowed = max(0.05 * 2 * delay, 0.3)
        median, sent = found[f"p{n}.rtt_p50_ms"]["value"], found[f"p{n}.sent_packets"]["value"]
        what = f"{delay} ms each way, {sent:.0f} pings"
        yield Row("delay", what, median, 2 * delay, 2 * delay - allowed, 2 * delay + allowed, "ms")


def losses(bench: Bench) -> Iterator[Row]:
    """Yield how many of 10 000 numbered packets each loss takes, and whether the same seed takes the same."""
    capture = 'capture: [{interfaces: "b*:eth0", snaplen: 64, filter: icmp}]\nseed: 7\n'
    links = [f"forward: {{loss: {100 * p:g}%}}" for p in LOSSES]
    text = pairs("loss", links, f"seconds: {PACKETS * 0.002:g}, interval: 2ms", capture)
    lost: list[list[set[int]]] = []
    for again in ("loss", "again"):
        ran, lost_now = bench.run(again, text), []
        for n in range(len(LOSSES)):
            rows = ran.fields(f"b{n}", "eth0", "icmp.type == 8", "icmp.seq")
            lost_now.append(set(range(1, PACKETS + 1)) - {int(seq) for (seq,) in rows})
        lost.append(lost_now)
    for n, share in enumerate(LOSSES):
        low, high = binomial(PACKETS, share, 0.999)
        yield Row("loss", f"{100 * share:g} % of {PACKETS}", len(lost[0][n]), PACKETS * share, low, high, "packets")
        differ = len(lost[0][n] ^ lost[1][n])
        yield Row("loss", f"{100 * share:g} %, lost in one of two runs of a seed", differ, 0, 0, 0, "packets")


def binomial(n: int, p: float, share: float) -> tuple[int, int]:
    """Return the middle interval of a binomial distribution that has at least this share."""
    chances = (exp(log(comb(n, k)) + k * log(p) + (n - k) * log(1 - p)) for k in range(n + 1))
    sums = list(accumulate(chances))
    tail = (1 - share) / 2
    return next(k for k, s in enumerate(sums) if s > tail), next(k for k, s in enumerate(sums) if s >= 1 - tail)


# ---- traces ----------------------------------------------------------------------------------------------

STEP, LONG = 0.01, 10.0  # s
FROM, UNTIL = 1.0, 9.0  # of the run: what is counted


@dataclass(frozen=True)
class Walk:
    """A random walk of a rate between two bounds (Mbit/s), with a share of outages, and a flow that fills it."""

    what: str
    least: float
    most: float
    outages: float = 0.0
    payload: int = 1472
    protocol: str = "udp"

    def rates(self) -> list[float]:
        """Return the rate (bit/s) of each step."""
        draw = random.Random(self.what)
        rate, found = (self.least * self.most) ** 0.5, []
        for _ in range(round(LONG / STEP)):
            rate = min(self.most, max(self.least, rate * draw.lognormvariate(0, 0.25)))
            found.append(0.0 if draw.random() < self.outages else 1e6 * rate)
        return found


WALKS = (
    Walk("2..60 Mbit/s", 2, 60),
    Walk("1..10 Mbit/s, short frames", 1, 10, payload=200),
    Walk("2..60 Mbit/s, 40 % outages", 2, 60, 0.4),
    Walk("1..10 Mbit/s, 40 % outages, short frames", 1, 10, 0.4, 200),
    Walk("0.1..1 Mbit/s", 0.1, 1),
    Walk("0.1..1 Mbit/s, short frames", 0.1, 1, payload=200),
    Walk("0.1..1 Mbit/s, 40 % outages, short frames", 0.1, 1, 0.4, 200),
    Walk("2..60 Mbit/s, TCP", 2, 60, protocol="tcp"),
)


def traces(bench: Bench) -> Iterator[Row]:
    """Yield what each trace lets through."""
    for n, walk in enumerate(WALKS):
        rates = walk.rates()
        with (bench.folder / "walk.csv").open("w") as file:
            csv.writer(file).writerows((f"{STEP * k:.3f}", f"{rate:.0f}") for k, rate in enumerate(rates))
        own = (
            f"rate: {1.3 * walk.most:g}mbit, length: {walk.payload}b" if walk.protocol == "udp" else "congestion: cubic"
        )
        columns = "{time: {column: 0, unit: s}, rate: {column: 1, unit: bit}}"
        ran = bench.run(
            f"trace-{n}",
            "name: trace\nfamilies: [ipv4]\nnodes: {a: {}, r: {router: {}}, b: {}}\nlinks:\n"
            "  - {ends: [a:eth0, r:eth0], addresses: [10.8.1.1/24, 10.8.1.2/24]}\n"
            "  - ends: [r:eth1, b:eth0]\n    addresses: [10.8.2.1/24, 10.8.2.2/24]\n"
            f"    forward: {{queue: {{limit: 200kb}}, trace: {{file: walk.csv, columns: {columns}}}}}\n"
            f"workloads:\n  f: {{iperf3: {{from: a, to: b, protocol: {walk.protocol}, seconds: {LONG:g}, {own}}}}}\n"
            "capture: [{interfaces: b:eth0, snaplen: 96}]\n",
        )
        frames = [f for f in ran.frames("b", "eth0", "10.8.1.1") if FROM <= f.t - ran.origin <= UNTIL]
        began, ended = frames[0].t - ran.origin, frames[-1].t - ran.origin
        wanted = sum(rate * max(0.0, min(ended, STEP * (k + 1)) - max(began, STEP * k)) for k, rate in enumerate(rates))
        yield within("trace", walk.what, sum(f.bytes for f in frames[1:]) / 1e6, wanted / 8e6, 0.01, "MB")


# ---- paths -----------------------------------------------------------------------------------------------

PATHS = ("20mbit", "8mbit")


def paths(bench: Bench) -> Iterator[Row]:
    """Yield the payload of both paths of a connection, of an upload and of a download."""
    wires = "".join(
        f"  - {{ends: [a:eth{n}, b:eth{n}], rate: {rate}, addresses: [10.7.{n}.1/24, 10.7.{n}.2/24]}}\n"
        for n, rate in enumerate(PATHS)
    )
    words = "iperf3: {from: a, to: b, protocol: mptcp, seconds: 10, congestion: cubic"
    for way, more, node, peer in (("up", "", "a", "b"), ("down", ", reverse: true", "b", "a")):
        ran = bench.run(
            f"paths-{way}",
            f"name: paths\nfamilies: [ipv4]\nnodes:\n  a: {{mptcp: {{endpoints: [{{interface: eth1}}]}}}}\n"
            f"  b: {{mptcp: {{}}}}\nlinks:\n{wires}workloads:\n  f: {{{words}{more}}}}}\n"
            'capture: [{interfaces: "*:*", snaplen: 96}]\n',
        )
        # The second subflow of either way has the server's first address, and leaves by the interface of its own.
        for n, rate in enumerate(PATHS):
            address = f"10.7.{n}.1" if node == "a" else "10.7.0.2"
            other = "ip.dst == 10.7.0.2" if node == "a" else f"ip.dst == 10.7.{n}.1"
            wire = 0
            for k in range(len(PATHS)):
                chosen = f"ip.src == {address} and {other} and tcp"
                wire += sum(int(d) for (d,) in ran.fields(peer, f"eth{k}", chosen, "tcp.len"))
            own = f"eth{n}/b:eth0" if node == "a" else f"eth0/a:eth{n}"
            told = ran.metrics[f"{node}.path.{own}.bytes_sent"]["value"]
            yield within("paths", f"{way}, path of {rate}", told / 1e6, wire / 1e6, 0.01, "MB")


# ---- command line ----------------------------------------------------------------------------------------


def lacking(bench: Bench) -> set[str]:
    """Return the features that the machine lacks."""
    words = (sys.executable, "-m", "testbed", "doctor", "--json", "--machine", bench.machine)
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    if not done.stdout:
        give_up(done.stderr)
    return {f["feature"] for f in json.loads(done.stdout)["features"] if not f["present"]}


NEEDS = {
    "rate": {"tbf", "iperf3", "dumpcap", "mptcp", "mptcpize"},
    "delay": {"netem"},
    "loss": {"netem", "dumpcap"},
    "trace": {"htb", "tbf", "iperf3", "dumpcap"},
    "paths": {"tbf", "iperf3", "dumpcap", "mptcp", "mptcp-diag", "mptcpize"},
}


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=names(PARTS), default=PARTS)
    parser.add_argument("--machine", choices=("here", "microvm"), default="here")
    parser.add_argument("--rates", type=lambda text: tuple(text.split(",")), help="such as 64kbit,1mbit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep files and results here")
    return parser.parse_args()


def main() -> int:
    """Measure, show, judge."""
    given = arguments()
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="testbed-fidelity-") as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(given.machine, folder)
        missing = lacking(bench)
        parts: dict[str, Callable[[Bench], Iterator[Row]]] = {
            "rate": lambda bench: rates(bench, given.rates or RATES[given.machine]),
            "delay": delays,
            "loss": losses,
            "trace": traces,
            "paths": paths,
        }
        print(f"      {'part':6}{'':44}{'measured':>12}{'expected':>12}{'off':>10}  bounds")
        for part in given.parts:
            if lack := NEEDS[part] & missing:
                print(f"{part} is not measured: machine {given.machine} lacks {', '.join(sorted(lack))}")
                continue
            for row in parts[part](bench):
                print(row, flush=True)
                found.append(row)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) | {"met": row.met} for row in found], indent=1) + "\n")
    return int(not all(row.met for row in found))


if __name__ == "__main__":
    sys.exit(main())
