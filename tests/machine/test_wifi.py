"""Wi-Fi in a guest, on the real daemons and drivers: what multi-link operation (IEEE 802.11be) must be seen to do.

One guest serves all: labs follow each other in it, and two of them are there at once where that is the question.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from testbed.machines.guest import booted, command, image, microvm
from testbed.machines.guest.qemu import Share, Size
from tests.conftest import ROOT
from tests.machine.conftest import Run

pytestmark = [pytest.mark.machine, pytest.mark.xdist_group("wifi")]

PATIENCE = 300  # s: the first guest is saved for the others
HOME = "-"  # the lab's own namespace, where the monitor interfaces are
Facts = Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """What a command has left behind."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Box:
    """A guest, and the folder that is its /results."""

    begin: Callable[[], microvm.Guest]
    folder: Path
    begun: list[microvm.Guest] = field(default_factory=list)

    @property
    def guest(self) -> microvm.Guest:
        """The guest; another one where it has ended, so that not all that follows fails with the test that saw it."""
        if not self.begun or self.begun[-1].name not in microvm.guests():
            if self.begun:
                sys.stderr.write(f"{microvm.gone(self.begun[-1])}\n")
            self.begun.append(self.begin())
        return self.begun[-1]

    def run(self, *argv: str) -> Done:
        """Run a command in the guest; `testbed` is the command line."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open("/dev/null") as null:
            streams = (null.fileno(), out.fileno(), err.fileno())
            status = command.call(self.guest, argv, cwd="/results", streams=streams)
            texts = [(file.seek(0), file.read().decode(errors="replace"))[1] for file in (out, err)]
        return Done(status, *texts)

    def good(self, *argv: str) -> str:
        """Run a command that must end with 0; return its output."""
        done = self.run(*argv)
        assert done.status == 0, done.out + done.err
        return done.out

    def file(self, name: str, text: str) -> str:
        """Write a file for the guest; return its path there."""
        (self.folder / name).write_text(text)
        return f"/results/{name}"

    def ask(self, lab: str, **questions: tuple[str, str]) -> Facts:
        """Run shell commands in nodes of a lab, (node, command) each; return what each said.

        They are one command: to begin one takes an emulated processor seconds.
        """
        rows = []
        for key, (node, words) in questions.items():
            space = "/proc/1/ns/net" if node == HOME else f"/run/netns/{node}"
            rows.append(f"echo '== {key}'; nsenter --net={space} sh -c {shlex.quote(words)} 2>&1")
        self.file("ask.sh", "\n".join(rows))
        some = next(node for node, _ in questions.values() if node != HOME)
        said = self.good("testbed", "exec", lab, some, "--", "sh", "/results/ask.sh")
        parts = [part.partition("\n") for part in f"\n{said}".split("\n== ")[1:]]
        return {key: text for key, _, text in parts}

    def radios(self) -> str:
        """Return every radio of the guest's kernel, whatever namespace it is in; debugfs shows them all."""
        script = "mount -t debugfs none /sys/kernel/debug 2>/dev/null; ls /sys/kernel/debug/ieee80211 2>/dev/null; true"
        return self.good("sh", "-c", script)

    def gone(self) -> None:
        """Assert that nothing of a lab is left: no radio, no daemon; a namespace is freed a moment after its end."""
        words = 'for n in 1 2 3 4 5 6 7 8 9 10; do test -z "$(ls /sys/kernel/debug/ieee80211)" && break; sleep 1; done'
        left = self.good("sh", "-c", f"{words}; ps -e -o comm=").split()
        assert self.radios() == ""
        assert not {"hostapd", "wpa_supplicant"} & set(left)


@pytest.fixture(scope="module")
def box(guests: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    made = image.find()
    assert made is not None
    folder = tmp_path_factory.mktemp("results")
    shares = {"code": Share(ROOT, "/testbed"), "results": Share(folder, "/results", True)}
    box = Box(lambda: microvm.start(made, Size(), f"t{uuid4().hex[:8]}", shares), folder)
    try:
        yield box
    finally:
        for guest in box.begun:
            microvm.stop(guest)


def here(file: str) -> str:
    return f"/testbed/{file}"


def test_the_machine_gets_its_country_back_when_the_last_lab_with_radios_has_ended(box: Box) -> None:
    def country() -> str:
        return box.good("sh", "-c", "iw reg get | sed -n '/^global/{n;s/country //;s/:.*//;p}'").strip()

    before = country()
    assert before
    lab = "name: {0}\nnodes:\n  ap: {{access_point: {{ssid: x, freq: 2412, country: DE}}}}\n"
    for name in ("one", "two"):
        box.good("testbed", "up", box.file(f"{name}.yaml", lab.format(name)))
    assert country() == "DE" != before
    box.good("testbed", "down", "one")
    assert country() == "DE", "another lab has radios"
    kill = "kill -9 $(pgrep -x testbed:two)"
    same = f"test ! -e /run/testbed-country && iw reg get | grep -q '^country {before}:'"
    box.good("sh", "-c", f"{kill}; for n in $(seq 100); do {same} && exit; sleep 0.1; done; iw reg get; exit 1")
    box.gone()


def pairs(text: str) -> dict[str, str]:
    """Return the `key=value` lines of a control socket's answer."""
    return dict(row.split("=", 1) for row in text.splitlines() if "=" in row)


def wpa(node: str, command: str = "status") -> tuple[str, str]:
    return node, f"wpa_cli -p /run/testbed/wpa-{node} -i wlan0 {command}"


def hostapd(link: int, command: str, node: str = "ap") -> tuple[str, str]:
    return node, f"hostapd_cli -p /run/testbed/hostapd-{node}-{link} -i wlan0 {command}"


# A lab that is up: one AP MLD; stations with three links, with two, and without MLO on 5 and on 2.4 GHz


@pytest.fixture(scope="module")
def mix(box: Box) -> Facts:
    box.good("testbed", "up", here("topologies/mlo-legacy-mix.yaml"), "--name", "mix")
    stations = ("phone", "tablet", "laptop", "sensor")
    facts = dict(
        box.ask(
            "mix",
            **{f"status {n}": wpa(n) for n in stations},
            **{f"links {n}": wpa(n, "mlo_status") for n in ("phone", "tablet")},
            **{f"ap {n}": hostapd(n, "status") for n in range(3)},
            **{f"sta {n}": hostapd(n, "all_sta") for n in range(3)},
            # The first frames of a station without MLO wait for its block acknowledgement agreement.
            # Nobody has sent anything yet: this must find all of them by frames to group addresses.
            warm=("server", "for n in phone tablet laptop sensor; do ping -c 3 -i 0.3 -q $n >/dev/null; done"),
            **{f"to {n}": ("server", echo(f"-4 {n}")) for n in stations},
            **{f"to6 {n}": ("server", echo(f"-6 {n}")) for n in stations},
            **{f"from {n}": (n, echo("server")) for n in stations},
            across=("phone", echo("laptop")),
            fdb=("ap", "bridge fdb show br br0"),
            neighbours=("server", "ip neigh"),
            names=("phone", "ls /sys/class/net"),
            dmesg=("ap", "dmesg"),
        )
    )
    facts |= {f"node {n}": box.good("testbed", "status", "mix", n, "--json") for n in ("phone", "ap")}
    box.good("testbed", "down", "mix")
    box.gone()
    return facts


def echo(target: str) -> str:
    """A ping that may be repeated: the first data of a station without MLO stall for up to a second."""
    once = f"ping -c 3 -i 0.2 -W 2 -q {target}"
    return f'for k in 1 2 3; do said=$({once}); echo "$said" | grep -q \' 0% packet loss\' && break; done; echo "$said"'


def seen(mix: Facts, node: str) -> dict[str, Any]:
    return next(i for i in json.loads(mix[f"node {node}"]) if i["name"] == "wlan0")


FREQS = {0: 2412, 1: 5180, 2: 5975}


def test_an_mld_is_one_interface_with_the_planned_links_on_both_sides(mix: Facts) -> None:
    phone, ap = seen(mix, "phone"), seen(mix, "ap")
    assert {link["id"]: (link["freq"], link["width"]) for link in phone["links"]} == {
        n: (f, 20) for n, f in FREQS.items()
    }
    assert {link["id"]: link["freq"] for link in ap["links"]} == FREQS
    assert phone["mld"]
    assert ap["mld"]
    assert mix["names"].split() == ["lo", "wlan0"], "one network interface, whatever the number of links"
    assert pairs(mix["status phone"])["ap_mld_addr"] == ap["mac"]
    bssids = {link["id"]: link["mac"] for link in ap["links"]}
    assert {b["link_id"]: b["bssid"] for b in phone["heard"]} == bssids
    addresses = [ap["mac"], phone["mac"], *bssids.values(), *(link["mac"] for link in phone["links"])]
    assert len(set(addresses)) == 8, "the MLD address is that of no link"


def test_one_handshake_is_for_all_links(mix: Facts) -> None:
    status = pairs(mix["status phone"])
    wanted = {"key_mgmt": "SAE", "pairwise_cipher": "CCMP", "pmf": "2", "wifi_generation": "7", "bigtk_set": "1"}
    assert {k: status.get(k) for k in wanted} == wanted
    assert status["wpa_state"] == "COMPLETED"
    aids = {pairs(part)["aid"] for n in range(3) for part in stations(mix[f"sta {n}"], seen(mix, "phone")["mac"])}
    assert len(aids) == 1, "one association identifier on all links"


def stations(text: str, mac: str) -> list[str]:
    """Return what hostapd's `all_sta` says of one station."""
    parts = [""]
    for row in text.splitlines():
        if len(row) == 17 and row.count(":") == 5:
            parts.append("")
        parts[-1] += f"{row}\n"
    return [part for part in parts if part.startswith(mac)]


def test_a_station_is_on_the_links_that_it_joined_with_and_authorized_on_each(mix: Facts) -> None:
    where = {}
    for node in ("phone", "tablet", "laptop", "sensor"):
        mac = pairs(mix[f"status {node}"])["address"]
        where[node] = {n for n in range(3) for part in stations(mix[f"sta {n}"], mac) if "[AUTHORIZED]" in part}
    assert where == {"phone": {0, 1, 2}, "tablet": {0, 1}, "laptop": {1}, "sensor": {0}}


def test_a_station_without_mlo_sees_an_ordinary_access_point(mix: Facts) -> None:
    status = pairs(mix["status laptop"])
    assert (status["freq"], status["bssid"]) == ("5180", seen(mix, "ap")["links"][1]["mac"])
    assert "ap_mld_addr" not in status


@pytest.mark.parametrize("way", ["to {}", "to6 {}", "from {}"])
def test_every_station_and_the_cable_reach_each_other(mix: Facts, way: str) -> None:
    for node in ("phone", "tablet", "laptop", "sensor"):
        assert " 0% packet loss" in mix[way.format(node)], mix[way.format(node)]


def test_stations_reach_each_other(mix: Facts) -> None:
    assert " 0% packet loss" in mix["across"], mix["across"]


def test_the_cable_side_knows_mld_addresses_only(mix: Facts) -> None:
    links = {link["mac"] for node in ("phone", "ap") for link in seen(mix, node)["links"]}
    assert links
    known = f"{mix['fdb']}\n{mix['neighbours']}"
    assert not [mac for mac in links if mac in known]
    for node in ("phone", "tablet", "laptop", "sensor"):
        assert pairs(mix[f"status {node}"])["address"] in mix["fdb"]
    assert seen(mix, "phone")["mac"] in mix["neighbours"]


def test_the_kernel_has_nothing_to_complain_of(mix: Facts) -> None:
    assert "WARNING" not in mix["dmesg"]
    assert "BUG" not in mix["dmesg"]


# What is in the air: a run in which the phone joins again

REJOIN = f"""
name: rejoin
topology: {here("topologies/mlo-three-link.yaml")}
nodes: {{old: {{station: {{ssid: lab, legacy_link: 1}}}}}}
workloads: {{rtt: {{ping: {{from: phone, to: server, seconds: 9, interval: 100ms}}}}}}
events: [{{at: 4s, node: phone, rejoin: true}}]
capture: ["air:*"]
checks: [{{metric: phone.wlan0.links, equals: 3}}, {{metric: phone.wlan0.connects, equals: 1}}]
"""


@pytest.fixture(scope="module")
def rejoin(box: Box) -> Run:
    file = box.file("rejoin.yaml", REJOIN)
    said = box.good("testbed", "run", file, "--name", "rejoin", "--results", "/results", "--machine", "here")
    done = subprocess.CompletedProcess((), 0, said, "")
    return Run(done, max((box.folder / "rejoin").glob("2*")))


FIELDS = {
    "kind": "wlan.fc.type_subtype",
    "message": "wlan_rsna_eapol.keydes.msgnr",
    "bssid": "wlan.bssid",
    "ssid": "wlan.ssid",
    "address": "wlan.eht.multi_link.common_info.mld_mac_address",
    "number": "wlan.eht.multi_link.common_info.link_id_subfield.link_id",
    "partners": "wlan.rnr.tbtt_info.mld_parameters.link_id",
    "bssids": "wlan.rnr.tbtt_info.bssid",
}
Frames = Mapping[int, list[dict[str, str]]]
ASSOCIATION, ASSOCIATED, BEACON, AUTHENTICATION = 0, 1, 8, 11  # IEEE 802.11-2020 table 9-1: management frames


@pytest.fixture(scope="module")
def air(box: Box, rejoin: Run) -> Frames:
    """The frames of each channel, decoded by the guest's tshark: it takes an emulated processor seconds to start."""
    folder = f"/results/{rejoin.folder.relative_to(box.folder)}"
    wanted = f"wlan.fc.type_subtype in {{{ASSOCIATION}, {ASSOCIATED}, {BEACON}, {AUTHENTICATION}}} || eapol"
    words = ("-Y", wanted, "-T", "fields", *(w for field in FIELDS.values() for w in ("-e", field)))
    each = f"tshark -r {folder}/air$freq.pcapng {shlex.join(words)} >/results/air$freq.rows &"
    box.good("sh", "-c", f"for freq in {' '.join(map(str, FREQS.values()))}; do {each} done; wait")
    rows = {freq: (box.folder / f"air{freq}.rows").read_text().splitlines() for freq in FREQS.values()}
    return {freq: [dict(zip(FIELDS, row.split("\t"), strict=True)) for row in some] for freq, some in rows.items()}


def test_each_beacon_has_the_mld_its_link_and_its_partners(rejoin: Run, air: Frames) -> None:
    ap = {link["id"]: link["mac"] for link in rejoin.lines("ap/samples.jsonl")[0]["wlans"]["wlan0"]["links"]}
    mld = rejoin.lines("ap/samples.jsonl")[0]["wlans"]["wlan0"]["mac"]
    for link, freq in FREQS.items():
        beacons = [row for row in air[freq] if int(row["kind"], 0) == BEACON]
        assert len(beacons) > 30
        others = set(FREQS) - {link}
        for row in beacons:
            assert (row["bssid"], bytes.fromhex(row["ssid"]), row["address"]) == (ap[link], b"lab", mld)
            assert int(row["number"], 0) == link
            assert {int(n, 0) for n in row["partners"].split(",")} == others
            assert set(row["bssids"].replace(":", "").split(",")) == {ap[n].replace(":", "") for n in others}


def test_one_authentication_and_one_association_bring_all_links(air: Frames) -> None:
    rows = [row for some in air.values() for row in some]
    kinds = Counter(int(row["kind"], 0) for row in rows if not row["message"])
    messages = {int(row["message"]) for row in rows if row["message"]}
    # On a busy processor all may come again that waits for an answer, and the answer is one.
    assert kinds[ASSOCIATED] == 1, "one association response"
    assert kinds[ASSOCIATION] >= 1, "to one request"
    assert kinds[AUTHENTICATION] >= 4, "SAE: commit and confirm, one each way"
    assert messages == {1, 2, 3, 4}, "one 4-way handshake"


def test_the_addresses_of_links_are_new_at_each_join_and_the_mlds_is_not(rejoin: Run) -> None:
    rows = [r["wlans"]["wlan0"] for r in rejoin.lines("phone/samples.jsonl")]
    first, last = ({link["id"]: link["mac"] for link in row["links"]} for row in (rows[0], rows[-1]))
    assert first.keys() == last.keys() == FREQS.keys()
    assert not set(first.values()) & set(last.values())
    assert len({row["mac"] for row in rows}) == 1


def test_a_join_is_told_with_its_links(rejoin: Run) -> None:
    told = [(e["event"], e["links"]) for e in rejoin.lines("phone/wlan-events.jsonl")]
    assert ("connect", [0, 1, 2]) in told
    assert not [e for e in rejoin.lines("old/wlan-events.jsonl") if e["event"] in ("connect", "disconnect")]


# The experiments, each in a guest of its own, and meanwhile a station that is not let in


@pytest.fixture(scope="module")
def wrong(box: Box) -> Iterator[subprocess.Popen[str]]:
    """A lab that waits for a station with another password: that takes a minute and a half, and little else."""
    other = "set_network 0 sae_password '\"not the password\"'"
    again = f"until wpa_cli -p /run/testbed/wpa-phone -i wlan0 {other}; do :; done"
    text = (
        "name: wrong\nnodes:\n  ap: {access_point: {ssid: lab, freq: 5180}}\n"
        f"  phone: {{station: {{ssid: lab}}, commands: [[sh, -c, {json.dumps(again)}]]}}\n"
    )
    call = ("/usr/sbin/testbed-call", uuid4().hex, booted.sources(box.guest.shares["code"]), "/results")  # what is warm
    words = (*call, "PYTHONPATH=/testbed", "--", "testbed", "up", box.file("wrong.yaml", text), "--name", "wrong")
    ssh = (*box.guest.ssh, shlex.join(words))
    with subprocess.Popen(
        ssh, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as p:
        yield p
        p.kill()


def test_association_after_association_has_every_link(wrong: subprocess.Popen[str]) -> None:
    words = (sys.executable, str(ROOT / "benchmarks/association.py"), "4")
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 associations: 4 with three links and no loss" in done.stdout


def test_every_link_carries_its_share(ran: Callable[[str], Run], wrong: subprocess.Popen[str]) -> None:
    run = ran("mlo-three-link")
    metrics = run.metrics
    sent = sum(metrics[f"phone.wlan0.link{n}.tx_frames"] for n in range(3))
    assert sent >= metrics["phone.wlan0.tx_packets"] - 3
    assert run.lines("air.jsonl")[-1]["drops"] == 0


def test_stations_with_and_without_mlo_get_on_with_one_another(ran: Callable[[str], Run]) -> None:
    run = ran("mlo-legacy-mix")
    assert not [name for name in run.metrics if name.startswith("tablet.wlan0.link2.")]


def test_a_removed_link_is_missed_by_nobody_but_who_was_on_it(ran: Callable[[str], Run]) -> None:
    run = ran("mlo-link-removal")
    told = run.lines("phone/wlan-events.jsonl")
    request = next(e for e in run.events if "LINK_REMOVE" in e["step"])
    removed = next(e for e in told if e["event"] == "links_removed")
    assert removed["links"] == [1]
    late = removed["t"] - request["monotonic"]
    assert 0.9 <= late <= 3.5, "ten beacons of 102.4 ms after it was announced"
    switched = next(e for e in told if e["event"] == "channel_switch")
    assert (switched["links"], switched["freq"]) == ([2], 6055)
    assert not [e for e in run.lines("near/wlan-events.jsonl") if e["event"] == "disconnect"]
    dmesg = (run.folder / "dmesg.log").read_text()
    assert "WARNING" not in dmesg


def test_a_station_that_is_not_let_in_is_said_with_the_end_of_its_log(box: Box, wrong: subprocess.Popen[str]) -> None:
    out, err = wrong.communicate(timeout=PATIENCE)
    assert wrong.returncode == 3, out + err
    assert "[phone]? wlan0 up on 5180 MHz" in err
    assert "wlan0 has no link" in err
    assert "wpa_supplicant.log: " in err
    assert "SME: Trying to authenticate" in err
    box.gone()


# All ways to join


WAYS = """
name: ways
nodes:
  owe:
    access_point:
      ssid: owe
      security: {akm: owe}
      mlo_links: [{link_id: 0, freq: 2412}, {link_id: 1, freq: 5180}]
  owe-sta: {station: {ssid: owe}}
  ext:
    access_point:
      ssid: ext
      security: {akm: sae-ext-key, pairwise: gcmp-256}
      mlo_links: [{link_id: 0, freq: 2437}, {link_id: 1, freq: 5200}, {link_id: 2, freq: 5975}]
    bridge: {ports: [wlan0, eth0]}
  ext-sta: {station: {ssid: ext}}
  host: {}
  open: {access_point: {ssid: open, freq: 5220, security: {akm: open}}}
  open-sta: {station: {ssid: open}}
  routed: {access_point: {ssid: routed, freq: 6055}, router: {}}
  routed-sta: {station: {ssid: routed}}
  far: {}
links:
  - {ends: [ext:eth0, host:eth0]}
  - {ends: [routed:eth0, far:eth0]}
"""


@pytest.fixture(scope="module")
def ways(box: Box) -> Facts:
    box.good("testbed", "up", box.file("ways.yaml", WAYS), "--name", "ways")
    flows = {"owe": "owe", "ext": "host", "open": "open", "routed": "far"}
    load = "iperf3 -s -D -1 --logfile /dev/null"
    facts = box.ask(
        "ways",
        **{f"status {n}": wpa(f"{n}-sta") for n in flows},
        **{f"warm {n}": (f"{n}-sta", f"ping -c 3 -i 0.3 -q {to}") for n, to in flows.items()},
        **{f"ping4 {n}": (f"{n}-sta", f"ping -c 3 -i 0.2 -q -4 {to}") for n, to in flows.items()},
        **{f"ping6 {n}": (f"{n}-sta", f"ping -c 3 -i 0.2 -q -6 {to}") for n, to in flows.items()},
        back=("far", "ping -c 3 -i 0.2 -q routed-sta"),
        serve=("host", load),
        down=("ext-sta", "iperf3 -c host -R -t 3 -b 4M"),
        mtu=("ext", "cat /sys/class/net/*/mtu 2>/dev/null; ip -o link | grep -o 'mtu [0-9]*'"),
        dmesg=("ext", "dmesg"),
    )
    box.good("testbed", "down", "ways")
    box.gone()
    return facts


@pytest.mark.parametrize(
    ("way", "akm", "cipher", "pmf"),
    [
        ("owe", "OWE", "CCMP", "2"),
        ("ext", "SAE-EXT-KEY", "GCMP-256", "2"),
        ("open", "NONE", "NONE", None),
        ("routed", "SAE", "CCMP", "2"),
    ],
)
def test_a_station_joins_in_the_way_that_was_asked_for(
    ways: Facts, way: str, akm: str, cipher: str, pmf: str | None
) -> None:
    status = pairs(ways[f"status {way}"])
    assert (status["key_mgmt"], status["pairwise_cipher"], status.get("pmf")) == (akm, cipher, pmf)
    for family in (4, 6):
        assert " 0% packet loss" in ways[f"ping{family} {way}"], ways[f"ping{family} {way}"]


def test_a_router_can_be_an_access_point(ways: Facts) -> None:
    assert " 0% packet loss" in ways["back"], ways["back"]


def test_gcmp_carries_bulk_without_a_kernel_warning(ways: Facts) -> None:
    assert "receiver" in ways["down"], ways["down"]
    assert "WARNING" not in ways["dmesg"]
    assert "mtu 1400" in ways["mtu"]


# Labs beside each other, and their ends


def test_two_labs_of_one_ssid_do_not_hear_each_other_and_leave_no_radio(box: Box) -> None:
    text = (ROOT / "topologies/mlo-three-link.yaml").read_text()
    box.file("one.yaml", text)
    box.file(
        "two.yaml", text.replace("  ap:", "  cell:").replace("ap:eth0", "cell:eth0").replace("  phone:", "  tablet:")
    )
    box.good("testbed", "up", "/results/one.yaml", "--name", "one")
    box.good("testbed", "up", "/results/two.yaml", "--name", "two")
    listen = "timeout 6 tcpdump -c 40 -n -e -i air5180 2>/dev/null | grep -o 'BSSID:[0-9a-f:]*' | sort -u"
    one = box.ask("one", scan=wpa("phone", "scan"), air=(HOME, listen), heard=wpa("phone", "scan_results"),
                  iw=("ap", "iw dev wlan0 info"))  # fmt: skip
    two = box.ask("two", air=(HOME, listen), iw=("cell", "iw dev wlan0 info"))
    heard = [set(facts["air"].replace("BSSID:", "").split()) - {"ff:ff:ff:ff:ff:ff"} for facts in (one, two)]
    assert heard[0]
    assert heard[1]
    assert not heard[0] & heard[1]
    for mine, iw in ((heard[0], one["iw"]), (heard[1], two["iw"])):
        assert mine <= set(iw.split()), "what is heard is what the lab's own access point sends"
    assert "lab" in one["heard"]
    assert not [mac for mac in heard[1] if mac in one["heard"]]

    # One ends in order, the other by force: each takes its radios, and neither the other's.
    box.good("testbed", "down", "one")
    radios = box.radios().split()
    assert any(r.startswith("cell-") for r in radios)
    assert not [r for r in radios if r.startswith("phone-")]
    box.good("sh", "-c", "pkill -KILL -o -x 'testbed:two'")
    box.gone()


def test_twenty_stations_join_one_access_point(box: Box) -> None:
    nodes = "".join(f"  s{n}: {{station: {{ssid: lab, legacy_link: {n % 2}}}}}\n" for n in range(16))
    nodes += "".join(f"  m{n}: {{station: {{ssid: lab}}}}\n" for n in range(4))
    links = "[{link_id: 0, freq: 2412}, {link_id: 1, freq: 5180}]"
    file = box.file(
        "many.yaml", f"name: many\nnodes:\n  ap: {{access_point: {{ssid: lab, mlo_links: {links}}}}}\n{nodes}"
    )
    box.good("testbed", "up", file, "--name", "many")
    try:
        said = box.ask("many", stations=("ap", "iw dev wlan0 station dump"))["stations"]
        assert said.count("Station ") == 20
        assert said.count("authorized:	yes") == 20
    finally:
        box.good("testbed", "down", "many")
    box.gone()


# What can not be


def test_a_channel_that_the_country_forbids_is_said_with_its_place_before_anything_is_made(box: Box) -> None:
    links = "[{link_id: 0, freq: 2412}, {link_id: 1, freq: 5975}]"
    text = f"name: us\nnodes:\n  ap: {{access_point: {{ssid: lab, country: US, mlo_links: {links}}}}}\n"
    done = box.run("testbed", "up", box.file("us.yaml", text), "--name", "us", "--machine", "here")
    assert done.status == 4, done.out + done.err
    assert "feature channel-US-5975 (nodes.ap.access_point.mlo_links[1]: an access point on 5975 MHz in US)" in done.err
    assert "nobody may begin to transmit" in done.err
    assert box.radios() == ""
