"""The path manager in user space beside the kernel's own: delay of joins, gap of a handover, goodput, in one run.

    python benchmarks/path_manager.py [--connections 1000] [--runs 20] [--rounds 3] [--only joins,gap] [--json FILE]

joins    from the packet that establishes a connection to its MP_JOIN SYN, in one capture of all its interfaces; each
         connection begins when the one before has its join
gap      the longest time without data when the host's own interface goes down; both managers take turns
goodput  of one transfer over two links of 20 Mbit/s: both used, one as backup, one that goes down

Exit status 1: a goal fails; 2: something could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import testbed as api
from testbed.loading import load

MEDIAN_MS, GAP, GOODPUT = 2.0, 1 / 3, 0.97
LAB = """name: {name}
families: [ipv4]
nodes:
  client: {{mptcp: {{path_manager: {manager}, endpoints: [{{interface: eth1, flags: [{flags}]}}]}}}}
  server: {{mptcp: {{path_manager: kernel}}}}
links:
  - {{ends: [client:eth0, server:eth0]{rate}}}
  - {{ends: [client:eth1, server:eth1]{rate}}}
"""
FLOW = (
    "workloads: {{bulk: {{transfer: {{from: client, to: server, protocol: mptcp, seconds: {}, congestion: cubic}}}}}}\n"
)
DOWN = "events: [{at: 1s, node: client, command: [ip, link, set, eth0, down]}]\n"
# name: flags of the endpoint, the policy beside the kernel's manager, seconds, events
SCENES = {
    "aggregation": ("subflow", "default", 3, ""),
    "backup": ("subflow, backup", "backup", 3, ""),
    "handover": ("subflow, backup", "handover", 4, DOWN),
}
SERVER = """
import select, socket
listener = socket.socket(proto=262)
listener.bind(("0.0.0.0", 5201)); listener.listen(1024)
poll = select.poll(); poll.register(listener, select.POLLIN); poll.register(0, select.POLLIN | select.POLLHUP)
flows = {}
print("ready", flush=True)
while True:
    for fd, _ in poll.poll():
        if fd == 0:
            raise SystemExit
        if fd == listener.fileno():
            flow = listener.accept()[0]; flows[flow.fileno()] = flow; poll.register(flow, select.POLLIN)
        elif data := flows[fd].recv(65536):
            flows[fd].sendall(data)
        else:
            poll.unregister(fd); flows.pop(fd).close()
"""
CLIENT = """
import collections, select, socket, sys
flows = collections.deque()
SOL_MPTCP, MPTCP_INFO = 284, 1
for n in range(int(sys.argv[1])):
    flow = socket.socket(proto=262); flow.connect(("10.0.1.2", 5201)); flow.sendall(b"x"); flow.recv(1)
    flows.append(flow)
    while not flow.getsockopt(SOL_MPTCP, MPTCP_INFO, 64)[0]:  # struct mptcp_info: mptcpi_subflows
        select.select([], [], [], 0.001)
    if len(flows) > 200:
        flows.popleft().close()
sys.stdin.readline()
"""
FIELDS = ("frame.time_epoch", "ip.src", "tcp.srcport", "ip.dst", "tcp.dstport", "tcp.flags", "tcp.option_kind")
MPTCP = "tcp.options.mptcp.subtype"


def joins(count: int) -> list[float]:
    """Return the milliseconds from the first DATA_ACK of each connection to the SYN of its join."""
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder, "lab.yaml")).write_text(
            LAB.format(name="pm", manager="userspace", flags="subflow", rate="")
        )
        name = f"pm{os.getpid()}"
        with api.up(load(file), name) as lab:
            enter = (sys.executable, "-m", "testbed", "exec", name)
            pcap = Path(folder, "client.pcapng")
            # Not -q: it says when it captures.
            words = (*enter, "client", "dumpcap", "-i", "eth0", "-i", "eth1", "-s", "200", "-B", "64", "-w", str(pcap))
            dump = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
            assert dump.stderr is not None
            while not dump.stderr.readline().startswith("File:"):
                if dump.poll() is not None:
                    raise SystemExit("dumpcap could not capture")
            python = (sys.executable, "-c")
            with subprocess.Popen((*enter, "server", *python, SERVER), stdin=-1, stdout=-1, text=True) as server:
                assert server.stdout is not None
                server.stdout.readline()
                with subprocess.Popen((*enter, "client", *python, CLIENT, str(count)), stdin=-1, text=True) as client:
                    log = ("cat", "/run/testbed/client/mptcp-events.jsonl")
                    while len(came := joined(lab.exec("client", log).stdout)) < count and client.poll() is None:
                        pass
                    client.communicate("\n")
                server.communicate("")
            dump.terminate()
            dump.communicate()
        return delays(pcap, came)


def joined(log: str) -> dict[int, int]:
    """Return by the port of a join that of the first subflow of its connection."""
    rows = [json.loads(row) for row in log.splitlines(keepends=True) if row.endswith("\n")]
    first = {r["token"]: r["local_port"] for r in rows if r.get("event") == "new_connection"}
    return {r["local_port"]: first[r["token"]] for r in rows if r.get("event") == "new_subflow"}


def delays(pcap: Path, came: Mapping[int, int]) -> list[float]:
    """Return the delays that a capture shows, in ms."""
    words = ["tshark", "-r", str(pcap), "-T", "fields", "-Y", "tcp"]
    for field in (*FIELDS, MPTCP):
        words += ["-e", field]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    established: dict[int, float] = {}
    syns: dict[int, float] = {}
    for row in said.splitlines():
        time, src, sport, _, dport, flags, _, subtypes = row.split("\t")
        kinds, bits = subtypes.split(","), int(flags, 0)
        if src == "10.0.1.2" and sport == "5201" and "2" in kinds and not bits & 0x02:
            established.setdefault(int(dport), float(time))  # the first DSS of the server has the first DATA_ACK
        elif src == "10.0.2.1" and dport == "5201" and "1" in kinds and bits & 0x12 == 0x02:
            syns.setdefault(int(sport), float(time))
    return [(at - established[came[p]]) * 1e3 for p, at in syns.items() if p in came and came[p] in established]


def figure(scene: str, manager: str, metric: str) -> float:
    """Run a scene under a manager and return a figure of it."""
    flags, _, seconds, events = SCENES[scene]
    text = LAB.format(name="pm", manager=manager, flags=flags, rate=", rate: 20mbit") + FLOW.format(seconds) + events
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "lab.yaml").write_text(text)
        words = (sys.executable, "-m", "testbed", "run", "lab.yaml", "--name", f"pm{os.getpid()}", "--machine", "here")
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout + done.stderr, file=sys.stderr)
            raise SystemExit(2)
        metrics = json.loads(Path(folder, "results/pm/latest/metrics.json").read_text())
        return float(metrics[metric]["value"])


def both(scene: str, metric: str, count: int) -> tuple[list[float], list[float]]:
    """Return a figure under the kernel's manager and under that in user space, which take turns."""
    ours = f"{{policy: {SCENES[scene][1]}}}"
    rows = [(figure(scene, "kernel", metric), figure(scene, ours, metric)) for _ in range(count)]
    return [k for k, _ in rows], [u for _, u in rows]


def main() -> int:
    """Measure what was asked for, print a table, and say whether the goals are met."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--connections", type=int, default=1000)
    options.add_argument("--runs", type=int, default=20)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", default="joins,gap,goodput")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    goals: list[tuple[bool, str]] = []
    found: dict[str, object] = {}
    if "joins" in asked.only.split(","):
        took = sorted(joins(asked.connections))
        if len(took) < asked.connections:
            print(f"of {asked.connections} connections {len(took)} have a join in the capture", file=sys.stderr)
        middle, high = statistics.median(took), took[int(len(took) * 0.99)]
        found["joins_ms"] = took
        more = f"p99 {high:.3f} ms, {len(took)} connections"
        goals.append((middle < MEDIAN_MS, f"join after {middle:.3f} ms in the median ({more}; goal: {MEDIAN_MS:g} ms)"))
    if "gap" in asked.only.split(","):
        kernel, ours = both("handover", "bulk.gap_s", asked.runs)
        found["gap_s"] = {"kernel": kernel, "userspace": ours}
        a, b = statistics.median(kernel), statistics.median(ours)
        told = f"gap of a handover {b:.3f} s, the kernel's {a:.3f} s (medians of {asked.runs}; goal: a third)"
        goals.append((b <= a * GAP, told))
    if "goodput" in asked.only.split(","):
        for scene in SCENES:
            kernel, ours = both(scene, "bulk.goodput_mbps", asked.rounds)
            found[scene] = {"kernel": kernel, "userspace": ours}
            a, b = statistics.median(kernel), statistics.median(ours)
            told = f"{scene}: {b:.2f} Mbit/s, the kernel's {a:.2f} (medians of {asked.rounds}; goal: {GOODPUT:.0%})"
            goals.append((b >= a * GOODPUT, told))
    for met, told in goals:
        print(f"{'pass' if met else 'FAIL'}  {told}")
    if asked.json is not None:
        asked.json.write_text(json.dumps(found) + "\n")
    return 0 if all(met for met, _ in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
