"""Wi-Fi without a kernel: what nl80211 said, channels, the regulatory database, the daemons' files, and metrics."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import convert
from msgspec.structs import replace

from testbed.drivers import hostapd, hwsim, nl80211, wpa_supplicant
from testbed.drivers.channels import channel
from testbed.drivers.nl80211 import Link, LinksAre, Wlan
from testbed.linux import wire
from testbed.loading import load
from testbed.machines.probe import regulatory
from testbed.metrics import wifi as metrics
from testbed.metrics.records import Air, Sample, Told
from testbed.plan.lab import plan
from testbed.steps import Wait, Write
from tests.conftest import ROOT
from tests.kept import compare
from tests.strategies import examples

RECORDED = [row.split() for row in (ROOT / "tests/recorded/nl80211.txt").read_text().splitlines() if row[0] != "#"]
MLD = "02:00:9e:5a:28:5a"
BSSIDS = {0: "02:00:19:e6:a8:01", 1: "02:00:6e:e1:98:97", 2: "02:00:f7:e8:c9:2d"}
FREQS = {0: 2412, 1: 5180, 2: 5975}


def said(node: str, what: str) -> list[bytes]:
    return [bytes.fromhex(data) for name, kind, data in RECORDED if (name, kind) == (node, what)]


class Space:
    """Stands for a namespace where every interface has index 7, every radio number 8 and every node descriptor 9."""

    def index(self, ifname: str) -> int:
        return 7

    def claim(self, ifname: str, node: str | None = None) -> int:
        raise AssertionError(ifname)

    def namespace(self, node: str) -> int:
        return 9

    def radio(self, name: str) -> str:
        return name

    def wiphy(self, radio: str) -> int:
        return 8


# What nl80211 says


def test_an_ap_mld_has_its_links_on_their_channels_and_an_address_that_none_of_them_has() -> None:
    (ap,) = map(nl80211.parse_interface, said("ap", "interface"))
    assert (ap.name, ap.mac, ap.mlo, ap.station) == ("wlan0", MLD, True, False)
    assert {link.id: (link.mac, link.freq, link.width) for link in ap.links} == {
        n: (BSSIDS[n], FREQS[n], 20) for n in FREQS
    }


def test_a_non_ap_mld_has_the_links_that_it_negotiated() -> None:
    (phone,), (tablet,) = (map(nl80211.parse_interface, said(node, "interface")) for node in ("phone", "tablet"))
    assert phone.freqs() == FREQS
    assert tablet.freqs() == {0: 2412, 1: 5180}
    assert phone.station
    assert len({phone.mac, MLD, *BSSIDS.values(), *(link.mac for link in phone.links)}) == 8, "no address is shared"


def test_each_link_of_a_station_is_heard_by_itself() -> None:
    heard = {b.link_id: b for b in map(nl80211.parse_bss, said("phone", "bss")) if b is not None}
    assert {n: (b.bssid, b.freq, b.mld) for n, b in heard.items()} == {n: (BSSIDS[n], FREQS[n], MLD) for n in FREQS}
    assert {b.signal for b in heard.values()} == {-50.0}
    assert all(0 <= b.seen_ms < 1000 for b in heard.values())


def test_a_station_without_mlo_has_one_link_that_has_no_number() -> None:
    (laptop,) = map(nl80211.parse_interface, said("laptop", "interface"))
    assert (laptop.mlo, laptop.links) == (False, (Link(0, laptop.mac, 5180, 20),))
    (bss,) = map(nl80211.parse_bss, said("laptop", "bss"))
    assert bss is not None
    assert (bss.link_id, bss.bssid, bss.mld) == (0, BSSIDS[1], "")


def test_a_bss_that_is_only_heard_is_none_of_the_station() -> None:
    (entry,) = said("laptop", "bss")
    status = wire.u32(9, 1)  # NL80211_BSS_STATUS: associated
    assert status in entry
    assert nl80211.parse_bss(entry.replace(status, wire.u32(9, 0))) is None


def event(command: int, *parts: bytes) -> bytes:
    return struct.pack("=BBH", command, 0, 0) + wire.u32(3, 7) + b"".join(parts)


def links(*ids: int) -> bytes:
    return wire.nest(312, *(wire.nest(n + 1, wire.u8(313, n)) for n in ids))  # MLO_LINKS, MLO_LINK_ID


def test_events_name_their_links() -> None:
    told = [
        nl80211.parse_event(e) for kind in ("channel-switch", "links-removed", "connect") for e in said("phone", kind)
    ]
    switch, removal, join = told
    assert (switch.command, switch.links, switch.freq) == (nl80211.CH_SWITCH_NOTIFY, (2,), 6055)
    assert (removal.command, removal.links) == (nl80211.LINKS_REMOVED, (1,))
    assert (join.command, join.links) == (nl80211.CONNECT, (0, 1, 2))
    assert {t.index for t in told} == {2}
    (gone,) = map(nl80211.parse_event, said("phone", "disconnect"))
    assert (gone.command, gone.links) == (nl80211.DISCONNECT, ())
    assert nl80211.parse_event(event(nl80211.CONNECT, links(2, 0, 1))).links == (0, 1, 2)


def test_an_access_point_knows_a_station_by_its_mld_address() -> None:
    known = dict(map(nl80211.parse_station, said("ap", "station")))
    assert known == {"02:00:c3:f1:bf:18": True}
    joined = LinksAre("wlan0", ((0, 2412),), True, ("ap", "wlan0", "02:00:c3:f1:bf:18"))
    assert joined.unknown(known) == ""
    assert joined.unknown({}) == "ap does not know the station 02:00:c3:f1:bf:18"
    assert joined.unknown({"02:00:c3:f1:bf:18": False}) == "ap has not authorized the station 02:00:c3:f1:bf:18"


@given(st.binary(max_size=200))
@examples(200)
def test_whatever_comes_is_read_or_refused_as_a_message(data: bytes) -> None:
    for read in (nl80211.parse_wiphy, nl80211.parse_event):
        try:
            read(bytes(4) + data)
        except (struct.error, IndexError, UnicodeDecodeError):
            continue


def test_requests_are_what_iw_would_send() -> None:
    move = nl80211.WiphyMove("phone-wlan0", "phone")
    body = move.encode(Space()).body
    assert (str(move), body[0]) == ("iw phy phone-wlan0 set netns name phone", 49)
    assert wire.attributes(body, 4) == {1: struct.pack("=I", 8), 219: struct.pack("=I", 9)}
    add = nl80211.WlanAdd("phone-wlan0", "wlan0", "managed", "02:00:00:00:00:01").encode(Space()).body
    fields = {1: struct.pack("=I", 8), 4: b"wlan0\0", 5: struct.pack("=I", 2), 6: b"\2\0\0\0\0\1"}
    assert (add[0], wire.attributes(add, 4)) == (7, fields)
    tune = nl80211.ChannelSet("air5975", 5975).encode(Space()).body
    assert (tune[0], wire.attributes(tune, 4)) == (65, {3: struct.pack("=I", 7), 38: struct.pack("=I", 5975)})
    assert wire.attributes(nl80211.CountrySet("DE").encode(Space()).body, 4) == {33: b"DE\0"}


def test_a_radio_has_no_interface_ends_with_its_maker_and_knows_mlo_if_asked() -> None:
    for mlo in (False, True):
        fields = wire.attributes(hwsim.RadioAdd("r", mlo).encode(Space()).body, 4)
        assert fields[17] == b"r\0"
        assert fields[9] == struct.pack("=I", 1), "more channels would bar a medium in user space"
        assert {16, 18} <= set(fields)
        assert (25 in fields) is mlo


# What is awaited of links

PLANNED = LinksAre("wlan0", tuple(FREQS.items()), mlo=True)


def wlan(freqs: dict[int, int], mlo: bool = True) -> Wlan:
    return Wlan(7, "wlan0", 2, "", mlo, tuple(Link(n, "", freq, 20) for n, freq in freqs.items()))


@pytest.mark.parametrize(
    ("seen", "running", "unmet"),
    [
        (wlan(FREQS), True, ""),
        (wlan(FREQS), False, "wlan0 is not up: not authorized yet"),
        (None, True, "there is no wireless interface wlan0"),
        (wlan({}), False, "wlan0 has no link"),
        (wlan({0: 2412, 2: 5975}), True, "link 1 (5180 MHz) is missing"),
        (wlan({0: 2412}), True, "link 1 (5180 MHz) is missing, link 2 (5975 MHz) is missing"),
        (wlan(FREQS | {1: 5200}), True, "link 1 is on 5200 MHz, not 5180"),
        (wlan(FREQS | {1: 0}), True, "link 1 (5180 MHz) is not active"),
        (wlan(FREQS | {3: 6055}), True, "link 3 (6055 MHz) exists but is not planned"),
    ],
)
def test_what_is_missing_of_links_is_said(seen: Wlan | None, running: bool, unmet: str) -> None:
    assert PLANNED.unmet(seen, running) == unmet


def test_a_station_without_mlo_is_asked_for_its_one_channel() -> None:
    alone = LinksAre("wlan0", ((2, 5975),), mlo=False)
    assert alone.unmet(wlan({0: 5975}, mlo=False), True) == ""
    assert alone.unmet(wlan({0: 5975}), True) == "wlan0 is an MLD"
    assert alone.unmet(wlan({0: 5180}, mlo=False), True) == "link 0 is on 5180 MHz, not 5975"
    assert LinksAre("wlan0", ((0, 2412),), mlo=True).unmet(wlan({0: 2412}, mlo=False), True) == "wlan0 is not an MLD"
    assert str(PLANNED) == "wlan0 valid_links = 0x7 (0:2412 1:5180 2:5975 MHz)"
    assert str(alone) == "wlan0 up on 5975 MHz"


@given(
    st.dictionaries(st.integers(0, 14), st.sampled_from([2412, 2437, 5180, 5975]), min_size=1, max_size=3), st.data()
)
@examples(100)
def test_only_the_planned_links_are_enough(freqs: dict[int, int], data: st.DataObject) -> None:
    seen = data.draw(st.dictionaries(st.integers(0, 14), st.sampled_from([0, 2412, 5180]), max_size=4) | st.just(freqs))
    assert (LinksAre("wlan0", tuple(freqs.items()), True).unmet(wlan(seen), True) == "") is (seen == freqs)


# Channels


@given(st.integers(0, 8000))
@examples(2000)
def test_a_channel_is_its_frequency(freq: int) -> None:
    found = channel(freq)
    if found is None:
        return
    start = {"2.4 GHz": 2407, "5 GHz": 5000, "6 GHz": 5950}[found.band]
    assert (found.freq, start + 5 * found.number) == (freq, freq)


def test_there_are_the_channels_of_annex_e() -> None:
    every = [found for freq in range(8000) if (found := channel(freq)) is not None]
    numbers = {band: [c.number for c in every if c.band == band] for band in ("2.4 GHz", "5 GHz", "6 GHz")}
    assert numbers["2.4 GHz"] == list(range(1, 14))
    assert numbers["5 GHz"] == [*range(36, 65, 4), *range(100, 145, 4), *range(149, 178, 4)]
    assert numbers["6 GHz"] == list(range(1, 234, 4))
    assert [c.number for c in every if c.radar] == [*range(52, 65, 4), *range(100, 145, 4)]
    assert {c.op_class for c in every} == {81, 115, 118, 121, 125, 131}


# The regulatory database


def database(*countries: tuple[str, tuple[tuple[int, int, int], ...]]) -> bytes:
    """Return a database as wireless-regdb's db2fw.py lays it out: rules are (kHz, kHz, flags)."""
    head = 8 + 4 * len(countries) + 4
    places, body = [], b""
    for name, rules in countries:
        pointers = []
        for start, end, flags in rules:
            pointers.append(head + len(body) >> 2)
            body += struct.pack(">BBHIII", 16, flags, 2000, start, end, 20000)
        places.append((name, head + len(body) >> 2))
        body += struct.pack(">BBBx", 3, len(rules), 0) + struct.pack(f">{len(rules)}H", *pointers)
        body += bytes(-len(body) % 4)
    index = b"".join(struct.pack(">2sH", name.encode(), at) for name, at in places)
    return b"RGDB" + struct.pack(">I", 20) + index + bytes(4) + body


DFS, NO_IR = 0x04, 0x08
WORLD = database(
    ("DE", ((2400000, 2483500, 0), (5150000, 5250000, 0), (5250000, 5350000, DFS), (5945000, 6425000, 0))),
    ("US", ((2400000, 2472000, 0), (5730000, 5850000, 0), (5850000, 5895000, 0), (5925000, 7125000, NO_IR))),
)


@pytest.mark.parametrize(
    ("country", "freq", "why"),
    [
        ("DE", 2412, ""),
        ("DE", 2472, ""),
        ("DE", 5180, ""),
        ("DE", 5975, ""),
        ("DE", 6435, "6435 MHz is not allowed in DE"),
        ("DE", 5260, "in DE an access point must look for radars at 5260 MHz first (DFS)"),
        ("US", 2467, "2467 MHz is not allowed in US"),
        ("US", 5845, ""),  # it lies across two rules
        ("US", 5885, ""),
        ("US", 5975, "in US nobody may begin to transmit at 5975 MHz (NO-IR), which an access point does"),
        ("XX", 2412, "there is no country XX in the regulatory database"),
    ],
)
def test_a_country_allows_a_channel_or_why_it_does_not(country: str, freq: int, why: str) -> None:
    assert regulatory.refusal(WORLD, country, freq) == why


def test_rules_are_read_as_they_were_written() -> None:
    found = regulatory.rules(WORLD, "DE")
    assert found is not None
    assert [(r.start, r.end, r.dfs, r.no_ir) for r in found][2:] == [
        (5250000, 5350000, True, False),
        (5945000, 6425000, False, False),
    ]
    with pytest.raises(ValueError, match="not a regulatory database"):
        regulatory.rules(b"RGDB" + struct.pack(">I", 19), "DE")


def test_the_real_database_knows_what_everybody_knows() -> None:
    file = Path("/lib/firmware/regulatory.db")
    if not file.exists():
        pytest.skip("there is no /lib/firmware/regulatory.db: apt-get install wireless-regdb")
    data = file.read_bytes()
    assert regulatory.refusal(data, "DE", 5975) == regulatory.refusal(data, "DE", 2412) == ""
    assert "NO-IR" in regulatory.refusal(data, "US", 5975)
    assert "DFS" in regulatory.refusal(data, "DE", 5260)


# The daemons' files


def topology(tmp_path: Path, access_point: str, *stations: str, rest: str = "") -> Any:
    nodes = "".join(f"  sta{n}: {{station: {{{s}}}}}\n" for n, s in enumerate(stations))
    file = tmp_path / "lab.yaml"
    file.write_text(f"name: lab\nnodes:\n{nodes}  ap: {{access_point: {{{access_point}}}}}\n{rest}")
    return plan(load(str(file)))


def files(made: Any) -> str:
    return "".join(f"# {s.path}\n{s.text}\n" for s in made.steps if isinstance(s, Write))


ACCESS_POINTS = {
    "three-links": (
        "ssid: lab, mlo_links: [{link_id: 0, freq: 2412}, {link_id: 1, freq: 5180}, {link_id: 2, freq: 5975}]",
        "ssid: lab",
        "ssid: lab, mlo_links: [0, 2]",
        "ssid: lab, legacy_link: 1",
    ),
    "sae-ext-key": (
        "ssid: lab, mlo_links: [{link_id: 0, freq: 2437}, {link_id: 1, freq: 2462}], "
        "security: {akm: sae-ext-key, pairwise: gcmp-256}",
        "ssid: lab",
    ),
    "owe": ("ssid: lab, mlo_links: [{link_id: 0, freq: 5180}], security: {akm: owe}", "ssid: lab"),
    "plain": ("ssid: lab, freq: 2412, security: {pmf: false, password: another password}", "ssid: lab"),
    "plain-6ghz": ("ssid: lab, freq: 6055, country: GB", "ssid: lab"),
    "open": ("ssid: lab, freq: 5745, security: {akm: open}, beacon_int: 50", "ssid: lab"),
}


@pytest.mark.parametrize("case", ACCESS_POINTS)
def test_the_daemons_get_these_files(case: str, tmp_path: Path) -> None:
    access_point, *stations = ACCESS_POINTS[case]
    compare(files(topology(tmp_path, access_point, *stations)), ROOT / f"tests/daemons/{case}.txt")


@pytest.mark.parametrize(
    ("freq", "partners", "element"),
    [
        (2412, (5180, 5975), "ff053802bfc000"),  # of three bands these two are known to work
        (5975, (2412, 5180), "ff0738042d3dbfc000"),
        (5180, (2412, 5975), ""),
        (2412, (2437, 5975), ""),
        (5975, (2412,), "ff0538022d3d00"),
        (2412, (), ""),
    ],
)
def test_a_link_inherits_no_element_of_another_generation(freq: int, partners: tuple[int, ...], element: str) -> None:
    common = ("wlan0", "lab", "DE", freq, "02::10", "02::1", "sae", "ccmp", "password", True, True, 100, "")
    rows = hostapd.config(hostapd.Ap(*common, partners), "/run/x").splitlines()
    assert [r for r in rows if "assocresp" in r] == ([f"assocresp_elements={element}"] if element else [])


def test_a_switch_keeps_the_generations_of_its_link() -> None:
    said = str(hostapd.channel_switch("ap", "wlan0", 2, 6055, mlo=True))
    assert said.endswith("raw CHAN_SWITCH 5 6055 center_freq1=6055 bandwidth=20 he eht")
    assert str(hostapd.channel_switch("ap", "wlan0", 0, 2437, mlo=False)).endswith("bandwidth=20 ht he")
    assert [c.command for c in wpa_supplicant.rejoin("sta", "wlan0")][::4] == ["DISCONNECT", "RECONNECT"]


def test_a_station_with_some_links_ignores_the_others(tmp_path: Path) -> None:
    access_point, *stations = ACCESS_POINTS["three-links"]
    made = topology(tmp_path, access_point, *stations)
    urges = {
        s.node: [str(r).partition("raw ")[2] for r in s.urge] for s in made.steps if isinstance(s, Wait) and s.urge
    }
    (bss,) = made.network.air
    assert urges["sta1"] == [*[f"BSSID_IGNORE {bss.bssids[1]}"] * 5, "ENABLE_NETWORK 0"]
    assert urges["sta0"] == urges["sta2"] == ["ENABLE_NETWORK 0"]


def test_a_station_waits_for_the_links_that_it_shall_have(tmp_path: Path) -> None:
    access_point, *stations = ACCESS_POINTS["three-links"]
    made = topology(tmp_path, access_point, *stations)
    waits = {s.node: s.probe for s in made.steps if isinstance(s, Wait) and s.urge}
    assert {n: str(w).partition("valid")[0] for n, w in waits.items()}.keys() == {"sta0", "sta1", "sta2"}
    assert "valid_links = 0x7 " in str(waits["sta0"])
    assert "valid_links = 0x5 (0:2412 2:5975 MHz)" in str(waits["sta1"])
    assert "wlan0 up on 5180 MHz" in str(waits["sta2"])


def test_gcmp_keeps_the_whole_segment_short(tmp_path: Path) -> None:
    cable = "links:\n  - {ends: [ap:eth0, host:eth0]}\n"
    rest = f"  host: {{}}\n{cable}"
    made = topology(tmp_path, "ssid: lab, freq: 5180, security: {pairwise: gcmp-256}", "ssid: lab", rest=rest)
    mtus = {f"{i.node}:{i.name}": i.mtu for every in made.network.interfaces.values() for i in every}
    assert mtus == {"sta0:wlan0": 1400, "ap:wlan0": 1400, "ap:eth0": 1500, "host:eth0": 1500}, "no bridge joins them"
    file = tmp_path / "bridged.yaml"
    file.write_text((tmp_path / "lab.yaml").read_text().replace("}}}\n  host", "}}, bridge: {}}\n  host"))
    bridged = plan(load(str(file)))
    assert {i.mtu for every in bridged.network.interfaces.values() for i in every} == {1400}


def test_a_station_looks_for_links_where_events_move_them(tmp_path: Path) -> None:
    access_point, *stations = ACCESS_POINTS["three-links"]
    events = "duration: 9s\nevents: [{at: 1s, node: ap, mlo_link: 2, freq: 6055}]\n"
    made = topology(tmp_path, access_point, *stations, rest=events)
    texts = {s.path: s.text for s in made.steps if isinstance(s, Write)}
    assert "scan_freq=2412 5180 5975 6055\n" in texts["sta0/wpa_supplicant.conf"]
    assert "scan_freq=5180\n" in texts["sta2/wpa_supplicant.conf"]


# Metrics

NAMES = {"wlan0": {2412: 0, 5180: 1}}
STA = {0: "02:00:00:00:00:a0", 1: "02:00:00:00:00:a1"}
AP = {0: "02:00:00:00:00:b0", 1: "02:00:00:00:00:b1"}


def sample(t: float, freqs: dict[int, int], seen: int = 40, mac: dict[int, str] = STA, mlo: bool = True) -> Sample:
    found = [
        {"id": n, "mac": mac[n], "freq": f, "width": 20, "signal": -50.0, "seen_ms": seen} for n, f in freqs.items()
    ]
    wlan = {"mac": "02::1", "mlo": mlo, "links": found}
    return convert({"t": t, "interfaces": {}, "qdiscs": [], "wlans": {"wlan0": wlan}}, Sample)


def heard(t: float, *rows: tuple[int, str, str, int, int]) -> Air:
    return Air(t, list(rows), 0)


def test_frames_are_those_of_each_link_since_the_beginning() -> None:
    both = {0: 2412, 1: 5180}
    frames = [
        heard(9.9, (2412, STA[0], AP[0], 5, 500)),
        heard(
            12.0,
            (2412, STA[0], AP[0], 35, 3500),
            (5180, AP[1], STA[1], 10, 900),
            (5180, AP[1], "01:00:5e:00:00:01", 99, 9900),
        ),
    ]
    found = metrics.wlans(NAMES, "sta", [sample(9.9, both), sample(12.0, both)], [], frames, 10.0)
    value = {k: m.value for k, m in found.items()}
    assert (value["sta.wlan0.link0.tx_frames"], value["sta.wlan0.link0.tx_bytes"]) == (30, 3000)
    assert (value["sta.wlan0.link1.rx_frames"], value["sta.wlan0.link1.rx_bytes"]) == (10, 900)
    assert (value["sta.wlan0.link0.share_pct"], value["sta.wlan0.link1.share_pct"]) == (75, 25)
    assert (value["sta.wlan0.links"], value["sta.wlan0.link1.freq_mhz"]) == (2, 5180)
    assert (value["sta.wlan0.link0.signal_dbm"], value["sta.wlan0.link0.seen_max_ms"]) == (-50, 40)


def test_the_frames_of_an_earlier_join_count_for_the_same_link() -> None:
    before, after = {0: "02:00:00:00:00:c0", 1: "02:00:00:00:00:c1"}, STA
    rows = [sample(10.1, {0: 2412}, mac=before), sample(11.0, {0: 2412}, mac=after)]
    frames = [
        heard(10.0),
        heard(12.0, (2412, before[0], AP[0], 4, 400), (2412, after[0], AP[0], 6, 600)),
    ]
    found = metrics.wlans(NAMES, "sta", rows, [], frames, 10.0)
    assert found["sta.wlan0.link0.tx_frames"].value == 10
    assert found["sta.wlan0.link0.share_pct"].value == 100
    assert found["sta.wlan0.link1.share_pct"].value == 0


def test_a_removed_link_has_the_time_and_is_inactive_from_then_on() -> None:
    rows = [sample(10.0, {0: 2412, 1: 5180}), sample(11.0, {0: 2412, 1: 0}), sample(12.0, {0: 2412})]
    told = [
        Told(9.0, "connect", [0, 1]),
        Told(11.5, "links_removed", [1]),
        Told(13.0, "connect", [0, 1]),
    ]
    found = metrics.wlans(NAMES, "sta", rows, told, [], 10.0)
    assert found["sta.wlan0.link1.removed_at_s"].value == 1.5
    assert found["sta.wlan0.link1.active"].series == ((0.0, 1.0), (1.0, 0.0), (2.0, 0.0))
    assert (found["sta.wlan0.links"].value, found["sta.wlan0.links"].series[0]) == (1, (0.0, 2.0))
    assert found["sta.wlan0.connects"].value == 1, "the join before t = 0 is none of the run"
    assert "sta.wlan0.link0.removed_at_s" not in found


def test_only_joins_that_were_granted_count_and_only_for_stations() -> None:
    rows = [sample(10.0, {0: 2412}), sample(12.0, {0: 2412})]
    told = [Told(10.5, "connect", [0], 30), Told(11.0, "connect", [0]), Told(11.5, "disconnect")]
    found = metrics.wlans(NAMES, "sta", rows, told, [], 10.0)
    assert found["sta.wlan0.connects"].value == 1, "status 30: refused temporarily (IEEE 802.11 table 9-80)"
    ap = [replace(r, wlans={"wlan0": replace((r.wlans or {})["wlan0"], station=False)}) for r in rows]
    assert "ap.wlan0.connects" not in metrics.wlans(NAMES, "ap", ap, [], [], 10.0)


def test_an_association_that_was_refused_says_so() -> None:
    refused = nl80211.parse_event(event(nl80211.CONNECT, wire.attr(72, struct.pack("=H", 30))))
    assert (refused.command, refused.status) == (nl80211.CONNECT, 30)


def test_a_link_without_mlo_has_its_planned_number() -> None:
    alone = [sample(t, {0: 5180}, mac={0: "02::a"}, mlo=False) for t in (10.0, 11.0)]
    frames = [heard(10.0), heard(11.0, (5180, "02::a", AP[1], 7, 700))]
    found = metrics.wlans({"wlan0": {5180: 1}}, "old", alone, [], frames, 10.0)
    assert found["old.wlan0.link1.freq_mhz"].value == 5180
    assert found["old.wlan0.link1.tx_frames"].value == 7
    assert not [name for name in found if ".link0." in name]
    assert metrics.wlans({}, "old", [], [], [], 10.0) == {}
