"""Bring-up and tear-down of a star and a chain side by side in one run: testbed, peers, and a bound in C.

    python benchmarks/bringup.py [--sizes 10,100,500] [--shapes star,chain] [--methods ...] [--repeats 5]
    python benchmarks/bringup.py --sizes 10000 --shapes stars --methods bound,testbed --repeats 1

`stars` are bridges of 1000 hosts each, beside one another; only these two methods make them.

Methods, in random order, each in a process and a private network and mount namespace of its own:

    mininet      Debian's package; star: SingleSwitchTopo, LinuxBridge (bridge-utils); chain: plain hosts, and the
                 routes by one `ip -batch` in each host's shell, which is the cheapest way that it has
    ip-batch     one `ip -batch` in the root, then one `ip -n NODE -batch` (chain: and a sysctl) in each node
    bound        bringup.c: the netlink messages of testbed and nothing else
    testbed      testbed.up() of a ready plan, sandbox included
    testbed-cli  the whole commands `testbed up FILE` and `testbed down`

Figures: `up` until the tool returns; `down` until its own deletion returns; `gone` from the start of the
deletion to the end of the kernel's last cleanup_net work item; `memory` is how much more the kernel and all
processes hold at `up` than before the method's process began, per node. Times are the least of the repeats.
In a chain every node reaches every other: all methods make the routes that testbed plans, one table for all.
Every network must carry a ping before it goes: to the last host of a star, through up to 48 routers of a chain
(a packet starts with a TTL of 64). Exit status 1: a goal fails; 2: something could not be measured.

Let nothing else make network namespaces meanwhile: the kernel's cleanup does not say whose they were.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

HERE = Path(__file__).resolve()
METHODS = ("mininet", "ip-batch", "bound", "testbed", "testbed-cli")
SHAPES = ("star", "chain", "stars")
A_BRIDGE = 1000  # hosts of each of several stars: a Linux bridge has 1023 ports at most
LAB = f"bench-{os.getpid()}"  # a lab that the user has up keeps its name
DEBIAN_PYTHON = "/usr/bin/python3"  # the interpreter that Debian's mininet package belongs to
TRACING = Path("/sys/kernel/tracing")
OPEN_FILES = 16384  # what Mininet would set; enough for two descriptors a node
QUIET = 0.4  # s without cleanup_net after which nothing more is expected
PRIVATE_ROOT = (
    *("unshare", "--net", "--mount", "sh", "-ec"),
    'mount -t tmpfs tmpfs /run; mkdir /run/netns; mount -t sysfs sysfs /sys; ip link set lo up; exec "$@"',
    "private-root",
)


@dataclass(frozen=True)
class End:
    """One end of a link."""

    node: str
    interface: str
    address: str | None

    def __str__(self) -> str:
        return f"{self.node}:{self.interface}"


@dataclass(frozen=True)
class Cell:
    """What one run measures."""

    shape: str
    size: int
    method: str


@dataclass(frozen=True)
class Figures:
    """What one run found: seconds, and kB per node."""

    up: float
    down: float
    gone: float
    memory: float


@dataclass(frozen=True)
class Goal:
    """A stated bound on a measured value."""

    text: str
    value: float
    relation: str
    limit: float

    @property
    def met(self) -> bool:
        """Whether the value keeps to the bound."""
        return self.value >= self.limit if self.relation == ">=" else self.value <= self.limit

    def __str__(self) -> str:
        verdict = "PASS" if self.met else "FAIL"
        return f"{verdict}  {self.text:<44}{self.value:9.3f}  {self.relation} {self.limit:g}"


# ---- the two shapes, the same for every method -----------------------------------------------------------


def ipv4(number: int) -> str:
    """Return the numbered address of 10/8."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def nodes(shape: str, size: int) -> tuple[str, ...]:
    """Name the nodes that count, without the hub of a star."""
    letter = "n" if shape == "chain" else "h"
    return tuple(f"{letter}{number}" for number in range(1, size + 1))


def links(shape: str, size: int) -> Iterator[tuple[End, End]]:
    """Yield the ends of every link: all hosts of a star in one /8, a /30 for each link of a chain."""
    names = nodes(shape, size)
    if shape == "star":
        for number, name in enumerate(names, 1):
            yield End(name, "eth0", f"{ipv4(number)}/8"), End("s1", f"p{number}", None)
    elif shape == "stars":
        for number, name in enumerate(names):
            hub, host = divmod(number, A_BRIDGE)
            yield End(name, "eth0", f"{ipv4((hub << 16) + host + 1)}/16"), End(f"s{hub + 1}", f"p{host + 1}", None)
    else:
        for number, (left, right) in enumerate(itertools.pairwise(names)):
            first, second = (f"{ipv4(4 * number + host)}/30" for host in (1, 2))
            yield End(left, "eth1", first), End(right, "eth0", second)


def target(shape: str, size: int) -> str:
    """Return what the first node pings: the last host of its star, the fiftieth node of a chain or its last."""
    return ipv4({"star": size, "stars": min(size, A_BRIDGE), "chain": 4 * (min(size, 50) - 2) + 2}[shape])


def topology(shape: str, size: int) -> str:
    """Write the topology file."""
    role = "{router: {}}" if shape == "chain" else "{}"
    hubs = {"star": 1, "stars": -(-size // A_BRIDGE), "chain": 0}[shape]
    lines = [f"name: {shape}", "families: [ipv4]", "nodes:"]
    lines += [f"  s{number + 1}: {{bridge: {{}}}}" for number in range(hubs)]
    lines += [f"  {name}: {role}" for name in nodes(shape, size)]
    lines += ["links:"]
    for left, right in links(shape, size):
        addresses = f"[{left.address}, {right.address or 'null'}]"
        lines += [f"  - {{ends: [{left}, {right}], addresses: {addresses}}}"]
    return "\n".join(lines) + "\n"


def routes(file: Path) -> str:
    """Write the routes that testbed plans, one a row: node, destination, next hop, interface."""
    testbed = importlib.import_module("testbed")
    steps = importlib.import_module("testbed.plan.lab").plan(testbed.load(file)).steps
    rows = (str(step).split() for step in steps if " ip route add " in str(step))
    return "".join(f"{row[0][1:-1]} {row[4]} {row[6]} {row[8]}\n" for row in rows)


def planned(path: str) -> dict[str, list[str]]:
    """Return the planned routes of each node as lines for `ip -batch`."""
    found: dict[str, list[str]] = {}
    for row in Path(path).with_suffix(".routes").read_text().splitlines():
        name, to, via, _ = row.split()  # Mininet has names of its own for interfaces
        found.setdefault(name, []).append(f"route add {to} via {via}")
    return found


# ---- workers: generators that stop when ready, then when up, and take down when resumed once more --------

Inside = Callable[[tuple[str, ...]], object]  # runs a command in the first node, raises when it fails
Worker = Iterator[Inside | None]


def give_up(why: str) -> NoReturn:
    """End for a reason that is no goal's failure."""
    print(why, file=sys.stderr)
    raise SystemExit(2)


def command(*argv: str, text: str | None = None) -> None:
    """Run a command that must succeed, its output among the errors."""
    subprocess.run(argv, input=text, text=True, check=True, stdout=sys.stderr)


def mininet(shape: str, size: int, path: str) -> Worker:
    """Start and stop a network of Mininet's."""
    topo, node, nodelib, net = (
        importlib.import_module(f"mininet.{name}") for name in ("topo", "node", "nodelib", "net")
    )
    if shape == "star":
        if not shutil.which("brctl"):
            give_up("mininet's LinuxBridge runs brctl: apt install bridge-utils")
        plan = topo.SingleSwitchTopo(size)
    else:
        plan = topo.Topo()
        pairs = tuple(links(shape, size))
        first = {pairs[0][0].node: pairs[0][0].address} | {right.node: right.address for _, right in pairs}
        for name, address in first.items():
            plan.addHost(name, cls=node.Node, ip=address)
        for left, right in pairs:
            plan.addLink(left.node, right.node, params1={"ip": left.address}, params2={"ip": right.address})
    rows = planned(path)
    net.Mininet.inited = True  # its init() raises sysctls of the whole machine, for good
    network = net.Mininet(plan, switch=nodelib.LinuxBridge, controller=None, build=False)
    yield None
    network.start()
    if shape == "chain":
        for host in network.hosts:
            host.cmd("echo 1 > /proc/sys/net/ipv4/ip_forward")  # a builtin of its shell: the cheapest it has
            lines = "\\n".join(rows[host.name])
            host.cmd(f"printf '{lines}\\n' | ip -batch -")
    namespace = f"--net=/proc/{network.hosts[0].pid}/ns/net"
    yield lambda argv: command("nsenter", namespace, *argv)
    network.stop()


def ip_batch(shape: str, size: int, path: str) -> Worker:
    """Run iproute2 as few times as its batches allow."""

    def place(end: End) -> str:
        return end.interface if end.node == "s1" else f"{end.interface} netns {end.node}"

    names = nodes(shape, size)
    root = [f"netns add {name}" for name in names]
    root += ["link add s1 type bridge", "link set s1 up"] if shape == "star" else []
    inside = {name: ["link set lo up"] for name in names}
    for left, right in links(shape, size):
        root += [f"link add {place(left)} type veth peer name {place(right)}"]
        for end in (left, right):
            if end.address is None:
                root += [f"link set {end.interface} master {end.node} up"]
            else:
                inside[end.node] += [f"addr add {end.address} dev {end.interface}"]
                inside[end.node] += [f"link set {end.interface} up"]
    for name, lines in planned(path).items():
        inside[name] += lines
    yield None
    command("ip", "-batch", "-", text="\n".join(root))
    for name, lines in inside.items():
        command("ip", "-n", name, "-batch", "-", text="\n".join(lines))
        if shape == "chain":
            command("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    yield lambda argv: command("ip", "netns", "exec", names[0], *argv)
    command("ip", "-batch", "-", text="\n".join(f"netns del {name}" for name in names))


def in_process(shape: str, size: int, path: str) -> Worker:
    """Perform a plan, in this process."""
    testbed = importlib.import_module("testbed")
    plan = importlib.import_module("testbed.plan.lab").plan(testbed.load(Path(path)))
    up = testbed.up  # imports its module
    yield None
    lab = up(plan, name=LAB)
    yield lambda argv: lab.exec(nodes(shape, size)[0], argv).check_returncode()
    lab.down()


def command_line(shape: str, size: int, path: str) -> Worker:
    """Run testbed's command line."""
    testbed = (sys.executable, "-m", "testbed")
    yield None
    command(*testbed, "up", path, "--name", LAB)
    yield lambda argv: command(*testbed, "exec", LAB, nodes(shape, size)[0], "--", *argv)
    command(*testbed, "down", LAB)


WORKERS: Mapping[str, Callable[[str, int, str], Worker]] = {
    "mininet": mininet,
    "ip-batch": ip_batch,
    "testbed": in_process,
    "testbed-cli": command_line,
}


def work(cell: Cell, path: str) -> None:
    """Speak the protocol of bringup.c: up, an answer to every address, down at the end of the input."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a tool prints must not look like an answer
    steps = WORKERS[cell.method](cell.shape, cell.size, path)
    next(steps)
    start = time.perf_counter()
    inside = next(steps)
    elapsed = time.perf_counter() - start
    assert inside
    try:
        print(json.dumps({"up": elapsed}), file=channel)
        for address in sys.stdin:
            try:
                inside(("ping", "-q", "-c", "1", "-w", "3", address.strip()))
                reached = True
            except subprocess.CalledProcessError:
                reached = False
            print(json.dumps({"reached": reached}), file=channel)
    finally:  # also when the driver was interrupted
        start = time.perf_counter()
        next(steps, None)
        elapsed = time.perf_counter() - start
    print(json.dumps({"down": elapsed}), file=channel)


# ---- what the kernel says --------------------------------------------------------------------------------


def memory() -> int:
    """Add up what the kernel and all processes hold, in kB, without the page cache."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    held = ("Slab", "Percpu", "AnonPages", "PageTables", "KernelStack")
    return sum(int(fields[key].split()[0]) for key in held)


def wait_for_idle_machine(patience: float = 5.0) -> None:
    """Wait until the processors are nine tenths idle, or patience ends."""

    def ticks() -> tuple[int, int]:
        first_line = Path("/proc/stat").read_text().split("\n", 1)[0]
        values = [int(value) for value in first_line.split()[1:9]]
        return values[3] + values[4], sum(values)

    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        idle, total = ticks()
        time.sleep(0.2)
        idle_now, total_now = ticks()
        if idle_now - idle >= 0.9 * (total_now - total):
            return


@contextlib.contextmanager
def cleanup_trace() -> Iterator[Path | None]:
    """Trace the kernel's cleanup_net work items on the monotonic clock; None where the kernel cannot."""
    instance = TRACING / "instances" / f"testbed-benchmark-{os.getpid()}"
    try:
        symbols = Path("/proc/kallsyms").read_text()
        found = re.search(r"^([0-9a-f]+) t cleanup_net$", symbols, re.MULTILINE | re.IGNORECASE)
        if not found or int(found[1], 16) == 0:
            raise OSError("/proc/kallsyms hides cleanup_net")
        instance.mkdir()
    except OSError as error:
        print(f"No workqueue trace ({error}): `gone` is when the method's process ended.", file=sys.stderr)
        yield None
        return
    try:
        (instance / "trace_clock").write_text("mono")
        for event in ("workqueue_execute_start", "workqueue_execute_end"):
            (instance / "events" / "workqueue" / event / "filter").write_text(f"function == 0x{found[1]}")
            (instance / "events" / "workqueue" / event / "enable").write_text("1")
        yield instance / "trace"
    finally:
        instance.rmdir()


def last_cleanup(trace: Path, patience: float = 120.0) -> float:
    """Wait for the end of the last cleanup_net: none is running, and none has begun for a while."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(0.05)
        found = re.findall(r"([\d.]+): workqueue_execute_(start|end):", trace.read_text())
        ends = [float(moment) for moment, kind in found if kind == "end"]
        if ends and len(found) <= 2 * len(ends) and time.monotonic() - ends[-1] > QUIET:
            return ends[-1]
    give_up("the kernel's cleanup does not come to rest: who else makes network namespaces?")


# ---- the driver ------------------------------------------------------------------------------------------


def worker_argv(cell: Cell, folder: Path) -> tuple[str, ...]:
    """Return the command that is the method; testbed makes its own private root, as part of its time."""
    file = folder / f"{cell.shape}-{cell.size}.yaml"
    worker = (str(HERE), "--worker", cell.method, cell.shape, str(cell.size), str(file))
    match cell.method:
        case "mininet":
            return (*PRIVATE_ROOT, DEBIAN_PYTHON, *worker)
        case "ip-batch":
            return (*PRIVATE_ROOT, sys.executable, *worker)
        case "bound":
            return (
                *PRIVATE_ROOT,
                str(folder / "bringup"),
                cell.shape,
                str(cell.size),
                str(file.with_suffix(".routes")),
            )
        case _:
            return (sys.executable, *worker)


def environment() -> dict[str, str]:
    """Return an environment in which `testbed` is this checkout."""
    return {**os.environ, "PYTHONPATH": str(HERE.parents[1])}


@contextlib.contextmanager
def conversation(argv: tuple[str, ...], folder: Path) -> Iterator[tuple[IO[str], Callable[[str], Any]]]:
    """Start a worker; give its input and a function that reads one answer. The end of its input ends it."""
    with (
        tempfile.TemporaryFile("w+", dir=folder) as errors,
        subprocess.Popen(
            ("nice", "-n", "-20", *argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            bufsize=1,
            env=environment(),
            start_new_session=True,  # ctrl-C is for the driver only: the worker still takes its network down
        ) as process,
    ):
        questions, answers = process.stdin, process.stdout
        assert questions
        assert answers

        def answer(key: str) -> Any:
            if line := answers.readline():
                return json.loads(line)[key]
            errors.seek(0)
            give_up(f"{' '.join(argv)}\nended without {key!r}:\n{errors.read()[-2000:]}")

        yield questions, answer


def measure(cell: Cell, folder: Path, trace: Path | None) -> Figures:
    """Bring one network up, look at it, and take it down."""
    wait_for_idle_machine()
    before = memory()
    with conversation(worker_argv(cell, folder), folder) as (questions, answer):
        up = answer("up")
        time.sleep(0.1)  # what the kernel frees after a grace period
        held = memory() - before
        print(target(cell.shape, cell.size), file=questions)
        if not answer("reached"):
            give_up(f"{cell}: the network does not carry a ping, so its time means nothing")
        if trace:
            trace.write_text("")
        start = time.monotonic()
        questions.close()
        down = answer("down")
    end = last_cleanup(trace) if trace else time.monotonic()
    return Figures(up, down, end - start, held / cell.size)


def reduced(samples: Sequence[tuple[Cell, Figures]]) -> dict[Cell, Figures]:
    """Reduce the repeats of every cell: the least of each time, to which others only add, and the median memory."""
    grouped: dict[Cell, list[tuple[float, ...]]] = {}
    for cell, figures in samples:
        grouped.setdefault(cell, []).append(astuple(figures))
    found = {}
    for cell, rows in grouped.items():
        up, down, gone, memory = zip(*rows, strict=True)
        found[cell] = Figures(min(up), min(down), min(gone), statistics.median(memory))
    return found


def goals(table: Mapping[Cell, Figures], traced: bool) -> Iterator[Goal]:
    """Yield every goal whose two sides were measured."""
    for shape, size in dict.fromkeys((cell.shape, cell.size) for cell in table):
        place = f"{shape} {size}:"
        peer, _, bound, own, whole = (table.get(Cell(shape, size, method)) for method in METHODS)
        judged = size in (100, 500)
        if judged and own and peer:
            yield Goal(f"{place} up, mininet / testbed", peer.up / own.up, ">=", 15)
        if judged and own and bound:
            yield Goal(f"{place} up, testbed / bound", own.up / bound.up, "<=", 1.6)
        if judged and own and bound and traced:
            yield Goal(f"{place} gone, testbed / bound", own.gone / bound.gone, "<=", 1.3)
        if size == 500 and own and peer:
            yield Goal(f"{place} memory, testbed / mininet", own.memory / peer.memory, "<=", 0.5)
        if judged and whole and bound:
            limit = 0.4 + 0.0005 * size
            yield Goal(f"{place} up, testbed-cli - bound, s", whole.up - bound.up, "<=", limit)
        if size == 500 and whole and peer:
            yield Goal(f"{place} up, mininet / testbed-cli", peer.up / whole.up, ">=", 3)
        if shape == "stars" and own and bound:
            yield Goal(f"{place} up, testbed - bound, ms a node", 1000 * (own.up - bound.up) / size, "<=", 1)
            yield Goal(f"{place} gone, s", own.gone, "<=", 30)
        small = table.get(Cell(shape, 100, "testbed"))
        if size == 1000 and own and small:
            yield Goal(f"{place} up per node, 1000 / 100", own.up / small.up / 10, "<=", 1.5)


def show(table: Mapping[Cell, Figures]) -> None:
    """Print the figures and the ratios."""

    def ratio(one: float, other: float) -> str:
        return f"{one / other:.2f}" if one and other else "-"

    absent = Figures(0, 0, 0, 0)

    heads = ("up s", "down s", "gone s", "kB/node", "mininet/up", "up/bound", "gone/bound", "kB/mininet")
    print(" " * 24 + "".join(f"{head:>11}" for head in heads))
    for cell, own in table.items():
        peer, bound = (table.get(Cell(cell.shape, cell.size, method), absent) for method in ("mininet", "bound"))
        row = (
            f"{own.up:.4f}",
            f"{own.down:.4f}",
            f"{own.gone:.3f}",
            f"{own.memory:.0f}",
            ratio(peer.up, own.up),
            ratio(own.up, bound.up),
            ratio(own.gone, bound.gone),
            ratio(own.memory, peer.memory),
        )
        print(f"{cell.shape:6}{cell.size:5}  {cell.method:11}" + "".join(f"{value:>11}" for value in row))


def prepare(folder: Path, cells: Sequence[Cell]) -> None:
    """Write the topology files and compile the bound."""
    for shape, size in {(cell.shape, cell.size) for cell in cells}:
        file = folder / f"{shape}-{size}.yaml"
        file.write_text(topology(shape, size))
        file.with_suffix(".routes").write_text(routes(file))
    command(sys.executable, "-m", "compileall", "-q", str(HERE.parents[1] / "testbed"))  # as pip does
    if any(cell.method == "bound" for cell in cells):
        command("cc", "-O2", "-o", str(folder / "bringup"), str(HERE.with_suffix(".c")))


def mount_tracefs_privately() -> None:
    """Start again in a mount namespace with tracefs, unless that was tried already."""
    if not (TRACING / "instances").is_dir() and "TESTBED_BENCHMARK" not in os.environ:
        script = f'mount -t tracefs tracefs {TRACING} || true; exec "$@"'
        again = ("unshare", "--mount", "sh", "-c", script, "benchmark", sys.executable, *sys.argv)
        os.execvpe(again[0], again, {**os.environ, "TESTBED_BENCHMARK": "1"})


def names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of a comma-separated choice, in the order of what is known."""

    def parse(text: str) -> tuple[str, ...]:
        wanted = set(text.split(","))
        if unknown := wanted - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return tuple(name for name in known if name in wanted)

    return parse


def numbers(text: str) -> tuple[int, ...]:
    """Parse comma-separated sizes."""
    return tuple(sorted(int(word) for word in text.split(",")))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=numbers, default=(10, 100, 500))
    parser.add_argument("--shapes", type=names(SHAPES), default=("star", "chain"))
    parser.add_argument("--methods", type=names(METHODS), default=METHODS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1, help="of the random order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples, figures and goals")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure, show, judge."""
    given = arguments()
    if given.worker:
        method, shape, size, path = given.worker
        work(Cell(shape, int(size), method), path)
        return 0
    if os.geteuid() != 0:
        give_up("the peers need root: run this as root")
    mount_tracefs_privately()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(OPEN_FILES, hard)), hard))

    cells = [Cell(*each) for each in itertools.product(given.shapes, given.sizes, given.methods)]
    shuffle = random.Random(given.seed)
    order = [cell for _ in range(given.repeats) for cell in shuffle.sample(cells, len(cells))]
    samples: list[tuple[Cell, Figures]] = []
    with tempfile.TemporaryDirectory(prefix="testbed-benchmark-") as temporary, cleanup_trace() as trace:
        prepare(Path(temporary), cells)
        for count, cell in enumerate(order, 1):
            figures = measure(cell, Path(temporary), trace)
            samples.append((cell, figures))
            label = f"[{count}/{len(order)}] {cell.shape} {cell.size} {cell.method}"
            print(f"{label:34} up {figures.up:.4f}  gone {figures.gone:.3f}", file=sys.stderr, flush=True)

    found = reduced(samples)
    table = {cell: found[cell] for cell in cells}
    verdicts = tuple(goals(table, traced=trace is not None))
    show(table)
    print()
    for goal in verdicts:
        print(goal)
    met = sum(goal.met for goal in verdicts)
    print(f"{met} of {len(verdicts)} goals met" if verdicts else "No goal was measured.")
    if given.json:
        record = {
            "machine": {"kernel": platform.release(), "cpus": os.cpu_count()},
            "options": {"seed": given.seed, "repeats": given.repeats, "traced": trace is not None},
            "samples": [asdict(cell) | asdict(figures) for cell, figures in samples],
            "figures": [asdict(cell) | asdict(figures) for cell, figures in table.items()],
            "goals": [asdict(goal) | {"met": goal.met} for goal in verdicts],
        }
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(met < len(verdicts))


if __name__ == "__main__":
    sys.exit(main())
