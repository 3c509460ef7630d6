"""Probes against what a person finds by hand with iproute2, nft and sockets; and they leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import features
from testbed.errors import Unsupported
from testbed.machines import choose
from testbed.machines.probe import here, remembered
from tests.conftest import ROOT, testbed

pytestmark = pytest.mark.kernel

TWO = str(ROOT / "topologies/two-hosts.yaml")
DELAY = ("--set", "links.cable.delay=10ms")
_SOCKET = "import socket as s; s.socket(s.{0}, s.SOCK_{1}, {2})"
_RULE = "table inet t {\n chain c {\n tcp option mptcp subtype 1 drop\n reset tcp option mptcp\n }\n}\n"
# What one would type in a namespace of one's own, and which program it takes.
BY_HAND: dict[str, tuple[str, str]] = {
    "veth": ("ip", "ip link add name one type veth peer name two && ip link show two"),
    "bridge": ("ip", "ip link add name one type bridge && ip link show one"),
    "vlan": ("ip", "ip link add o type veth peer t && ip link add link o name o.3 type vlan id 3 && ip link show o.3"),
    "ipv6": ("ip", "ip -6 address add 2001:db8::1/64 dev lo"),
    "tun": ("ip", "ip tuntap add name one mode tun && ip link show one"),
    "tap": ("ip", "ip tuntap add name one mode tap && ip link show one"),
    "netem": ("tc", "tc qdisc add dev lo root netem delay 1ms"),
    "tbf": ("tc", "tc qdisc add dev lo root tbf rate 1mbit burst 10k limit 10k"),
    "htb": ("tc", "tc qdisc add dev lo root htb"),
    **{kind: ("tc", f"tc qdisc add dev lo root {kind}") for kind in features.QDISCS if kind not in ("netem", "tbf")},
    "nft-mptcp": ("nft", f"printf '{_RULE}' | nft -f - && nft list table inet t | grep 'tcp option mptcp'"),
    "mptcp": ("python3", f"python3 -c '{_SOCKET.format('AF_INET', 'STREAM', 262)}'"),
    "mptcp-kernel-pm": ("ip", "ip mptcp limits set subflows 3 && ip mptcp limits | grep 'subflows 3'"),
    "mptcp-userspace-pm": ("sysctl", "sysctl -w net.mptcp.pm_type=1 && [ $(cat /proc/sys/net/mptcp/pm_type) = 1 ]"),
    "mptcp-scheduler": ("sysctl", "sysctl -w net.mptcp.scheduler=default"),
    "mroute": ("python3", f"python3 -c '{_SOCKET.format('AF_INET', 'RAW', 2)}.setsockopt(0, 200, 1)'"),
    "mroute6": ("python3", f"python3 -c '{_SOCKET.format('AF_INET6', 'RAW', 58)}.setsockopt(41, 200, 1)'"),
    # The stream device lo is refused by the driver, and an unknown kind by the kernel.
    "amt": ("ip", "ip link add name one type amt mode relay local 192.0.2.1 dev lo 2>&1 | grep 'Invalid stream'"),
    "mac80211_hwsim": ("genl", "genl ctrl get name MAC80211_HWSIM"),
}
_SYSTEM = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def alone(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in namespaces of its own: nothing else comes and goes there."""
    own = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    root = ("--map-root-user",) if os.geteuid() else ()
    env = {**os.environ, "PATH": _SYSTEM}
    return subprocess.run((*own, *root, *words), cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_probe_finds_what_is_found_by_hand(name: str) -> None:
    program, command = BY_HAND[name]
    if shutil.which(program, path=_SYSTEM) is None and name != "nft-mptcp":
        pytest.skip(f"nobody can try it by hand: there is no {program}")
    by_hand = alone("sh", "-c", command)
    (feature,) = (f for f in features.ALL if f.name == name)
    (finding,) = here.probe([feature], fresh=True)
    assert finding.present == (by_hand.returncode == 0), f"{finding.known} / {by_hand.stdout}{by_hand.stderr}"


def test_mptcp_sockets_are_listed_where_ss_lists_them() -> None:
    code = "import socket as s, time; a = s.socket(2, 1, 262); b = s.socket(2, 1, 262); a.bind(('127.0.0.1', 7)); "
    code += "a.listen(); b.connect(('127.0.0.1', 7)); import os; os.system('ss -HMtn')"
    by_hand = alone("sh", "-c", f'ip link set lo up && python3 -c "{code}"')
    (finding,) = here.probe([features.MPTCP_DIAG], fresh=True)
    assert finding.present == ("127.0.0.1:7" in by_hand.stdout), f"{finding.known} / {by_hand}"


def test_programs_are_judged_by_what_is_in_them() -> None:
    """Hostapd without 802.11be is told from one with, by its text; iperf3 by its manual; wpa_supplicant by both."""
    texts = {
        program: Path(path).read_bytes() if (path := shutil.which(program, path=_SYSTEM)) else b""
        for program in ("hostapd", "wpa_supplicant")
    }
    said = subprocess.run(("sh", "-c", "iperf3 --help"), capture_output=True, text=True).stdout
    wanted = (features.HOSTAPD_BE, features.WPA_SUPPLICANT_MLO, features.IPERF3_MPTCP, features.REGDB)
    assert [f.present for f in here.probe(wanted, fresh=True)] == [
        b"mld_ap\0" in texts["hostapd"],
        b"MLO_STATUS" in texts["wpa_supplicant"],
        "-m, --mptcp" in said,
        subprocess.run(("sh", "-c", "cat /lib/firmware/regulatory.db.p7s"), capture_output=True).returncode == 0,
    ]


def test_a_hostapd_is_asked_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads a configuration as hostapd does, with 802.11be and without."""
    from testbed.machines.probe import programs

    program = tmp_path / "hostapd"
    monkeypatch.setattr(programs, "_PATH", f"{tmp_path}:/usr/bin:/bin")
    for known, present in (("mld_ap", True), ("ssid", False)):
        program.write_text(
            "#!/bin/sh\nn=0; while IFS== read -r key value; do n=$((n+1)); case $key in "
            f"{known}) ;; *) echo \"Line $n: unknown configuration item '$key'\" ;; esac; done < $1; exit 1\n"
        )
        program.chmod(0o755)
        (finding,) = here.probe([features.HOSTAPD_BE], fresh=True)
        assert finding.present is present
    assert finding.known == "hostapd says: Line 1: unknown configuration item 'mld_ap'"


_LOOK = """
import json, os, subprocess
from pathlib import Path
from testbed import features
from testbed.machines.probe import here, scratch  # now: libffi keeps a descriptor of itself open once it is loaded

def seen():
    return {
        "interfaces": sorted(r.split(":")[0].strip() for r in Path("/proc/net/dev").read_text().splitlines()[2:]),
        "qdiscs": subprocess.run(("tc", "qdisc", "show"), capture_output=True, text=True).stdout,
        "rules": subprocess.run(("sh", "-c", "nft list ruleset"), capture_output=True, text=True).stdout,
        "multicast routing": Path("/proc/net/ip_mr_vif").read_text() if Path("/proc/net/ip_mr_vif").exists() else "",
        "radios": sorted(os.listdir("/sys/class/ieee80211")) if os.path.isdir("/sys/class/ieee80211") else [],
        "namespaces": sorted({os.readlink(f"/proc/{p}/ns/net") for p in os.listdir("/proc") if p.isdigit()}),
        "processes": sorted(p for p in os.listdir("/proc") if p.isdigit()),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "mptcp": [Path("/proc/sys/net/mptcp", f).read_text() for f in ("pm_type", "scheduler")
                  if Path("/proc/sys/net/mptcp", f).exists()],
        "files": sorted(str(f) for f in Path.cwd().rglob("*") if f.is_file()),
    }

before = seen()
found = here.probe(features.ALL, fresh=True)
after = seen()
print(json.dumps({"found": len(found), "before": before, "after": after}))
"""


def test_probing_everything_leaves_nothing_behind(tmp_path: Path) -> None:
    """No interface, qdisc, rule, radio, namespace, process, descriptor or parameter; one file, in the user's cache."""
    home = ("env", "-C", str(tmp_path), "-u", "XDG_CACHE_HOME", f"HOME={tmp_path}", f"TMPDIR={tmp_path}")
    done = alone(*home, f"PYTHONPATH={ROOT}", sys.executable, "-c", _LOOK)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert seen["after"].pop("files") == [str(tmp_path / f".cache/testbed/features-{boot}.json")]
    assert seen["before"].pop("files") == []
    assert seen["after"] == seen["before"]
    assert seen["found"] == len(features.ALL)
    assert seen["before"]["interfaces"] == ["lo"], "it looked where it should"


def test_doctor_groups_what_it_says_fits_the_screen_and_json_has_it_all() -> None:
    done = testbed("doctor")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    rows = json.loads(testbed("doctor", "--json").stdout)["features"]
    assert [r["feature"] for r in rows] == [f.name for f in features.ALL]
    for row in rows:
        shown = f"{'yes' if row['present'] else 'NO':3}  {row['feature']} "
        assert shown in done.stdout
        assert row["known"]
        assert row["present"] or row["get"].endswith("--machine microvm")


def test_doctor_remembers_what_was_there_and_probes_again_when_it_is_told_to(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def asked(*words: str) -> tuple[dict[str, bool], dict[str, bool]]:
        rows = json.loads(testbed("doctor", "--json", *words, env=env).stdout)["features"]
        return {r["feature"]: r["present"] for r in rows}, {r["feature"]: r["remembered"] for r in rows}

    first, remembered_first = asked()
    second, remembered_second = asked()
    assert first == second
    assert not any(remembered_first.values())
    kernel = {f.name for f in features.ALL if f.kernel or f.program}
    assert {n for n, known in remembered_second.items() if known} == {n for n in kernel if first[n]}
    assert not any(asked("--fresh")[1].values())


def test_doctor_says_which_machine_a_topology_would_take_and_why() -> None:
    done = testbed("doctor", TWO)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "machine here: this kernel and its tools offer all that is required"
    (netem,) = here.probe([features.QDISCS["netem"]])
    done, asked = testbed("doctor", TWO, *DELAY), json.loads(testbed("doctor", TWO, *DELAY, "--json").stdout)
    assert done.returncode == 0, "a machine offers it"
    assert asked["machine"] == ("here" if netem.present else "microvm")
    said = " ".join(done.stdout.split())
    assert said.endswith(f"machine {asked['machine']}: {asked['why']}")
    assert ("lacks netem (delay, jitter" in said) is not netem.present
    assert json.loads(testbed("doctor", TWO, *DELAY, "--json", "--machine", "here").stdout)["machine"] == "here"


def test_a_lab_that_needs_a_guest_where_none_can_start_has_no_machine(tmp_path: Path) -> None:
    (netem,) = here.probe([features.QDISCS["netem"]])
    tools = [p for tool in ("ip", "iperf3", "ping", "python3") if (p := shutil.which(tool))]
    for tool in tools:
        (tmp_path / Path(tool).name).symlink_to(tool)
    env = {**os.environ, "PATH": str(tmp_path)}
    done = testbed("doctor", TWO, *DELAY, env=env)
    assert done.returncode == (0 if netem.present else 4), done.stdout + done.stderr
    assert ("no microVM can start on this machine: qemu" in " ".join(done.stdout.split())) is not netem.present
    assert testbed("doctor", TWO, env=env).returncode == 0


def test_a_missing_program_is_named_and_no_guest_is_started_for_it(tmp_path: Path) -> None:
    for tool in ("ip", "ping"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    env = {**os.environ, "PATH": str(tmp_path)}
    done = testbed("run", TWO, "--results", str(tmp_path / "results"), env=env)
    assert done.returncode == 4
    assert "feature iperf3 (workload iperf3): not in PATH; apt-get install iperf3, or --machine microvm" in done.stderr


BEYOND = "name: beyond\nnodes: {a: {}, b: {}}\nlinks: [{ends: [a:eth0, b:eth0]}]\nfamilies: [ipv4]\nrequires: "


@pytest.mark.parametrize(
    ("needs", "missing"),
    [
        ('{kernel: ">=4.18", counters: [TcpExt.TCPTimeouts, Ip.InReceives], programs: [python3, ip]}', ""),
        ("{features: [tcp-congestion-reno, mptcp-scheduler-default]}", ""),
        ('{kernel: ">=999.1"}', "feature kernel>=999.1 (requires: kernel): this kernel is "),
        ("{counters: [TcpExt.NoSuch]}", "counter TcpExt.NoSuch (requires: counters): neither /proc/net/netstat nor"),
        ("{programs: [no-such-program]}", "feature no-such-program (requires: programs): not in PATH; install"),
        ("{features: [tcp-congestion-nosuch]}", "feature tcp-congestion-nosuch (congestion: nosuch): No such file"),
    ],
)
def test_what_a_file_requires_is_asked_before_anything_is_made(
    tmp_path: Path, name: str, needs: str, missing: str
) -> None:
    file = tmp_path / "beyond.yaml"
    file.write_text(f"{BEYOND}{needs}\n")
    done = testbed("up", str(file), "--name", name, "--machine", "here")
    assert (done.returncode, missing in done.stderr) == (4 if missing else 0, True), done.stderr
    assert (name in testbed("status").stdout) is not bool(missing)
    asked = testbed("doctor", str(file), "--machine", "here")
    assert asked.returncode == (4 if missing else 0)
    assert ("NO " in asked.stdout) is bool(missing)


def test_a_congestion_control_that_the_kernel_lacks_skips_the_run(tmp_path: Path) -> None:
    words = ("--set", "workloads.bulk.iperf3.congestion=nosuch", "--machine", "here")
    done = testbed("run", TWO, *words, "--results", str(tmp_path))
    assert done.returncode == 4
    assert "feature tcp-congestion-nosuch (congestion: nosuch)" in done.stderr
    assert not list(tmp_path.iterdir()), "nothing was made"


def test_doctor_asks_no_machine_that_it_can_not_reach() -> None:
    done = testbed("doctor", "--machine", "nowhere")
    assert done.returncode == 2
    assert "there is no machine 'nowhere'" in done.stderr


def test_what_must_run_here_is_refused_here_and_nothing_else_is_tried() -> None:
    (netem,) = here.probe([features.QDISCS["netem"]])
    if netem.present:
        assert choose.choose([features.QDISCS["netem"]], "here").machine == "here"
        return
    with pytest.raises(Unsupported, match=r"feature netem .*modprobe sch_netem, or --machine microvm"):
        choose.choose([features.VETH, features.QDISCS["netem"]], "here")
    assert choose.choose([features.VETH, features.QDISCS["netem"]]).machine == "microvm"


def test_a_kernel_that_lost_what_is_remembered_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A memory that is wrong costs a refused step: then it is probed, named with its cure, and forgotten."""
    netem = features.QDISCS["netem"]
    if here.probe([netem], fresh=True)[0].present:
        pytest.skip("this kernel has netem: nothing is wrong")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remembered.keep({netem: "it was there once"}, [])
    assert here.probe([netem])[0].present
    done = testbed("up", TWO, "--name", name, "--machine", "here", *DELAY)
    assert done.returncode == 4
    assert "feature netem" in done.stderr
    assert not here.probe([netem])[0].present
    assert testbed("status", name).returncode == 3
