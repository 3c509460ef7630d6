"""The path manager in user space: events in, commands out, and both as the kernel's bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.drivers import joins, mptcp_pm
from testbed.drivers.facts import ports
from testbed.drivers.mptcp_pm import (
    EVENTS,
    AddSubflow,
    Command,
    Event,
    RemoveAddr,
    RemoveSubflow,
    SendAddr,
    SetBackup,
    parse_event,
)
from testbed.errors import InputError
from testbed.linux import uapi, wire
from testbed.linux.inet_diag import Subflow as Socket
from testbed.loading import load
from testbed.metrics import managed
from testbed.metrics.records import Noted
from testbed.plan.lab import plan
from testbed.programs.mptcp import admission
from testbed.programs.mptcp.policies import asked, heard, moved, resumed
from testbed.programs.mptcp.recovery import taken
from testbed.programs.mptcp.state import Do, Own, Rule, Settings, State, failed
from testbed.steps import Write

OWN = (Own("10.0.2.1", "eth1", 1, ("subflow",)), Own("10.0.3.1", "eth2", 2, ("subflow",)))
WHERE: dict[str, tuple[str, ...]] = {"eth0": ("10.0.1.1/24",), "eth1": ("10.0.2.1/24",), "eth2": ("10.0.3.1/24",)}
FIRST = ("10.0.1.1", 40000, "10.0.1.2", 5201)


def event(kind: str, token: int = 7, **more: object) -> Event:
    ends = dict(zip(("local", "local_port", "remote", "remote_port"), FIRST, strict=True))
    return msgspec.convert({"event": kind, "token": token, **ends, **more}, Event)


def begun(how: Settings, server: bool = False) -> tuple[State, list[Command]]:
    state = State()
    assert heard(state, how, event("new_connection", server=server)) == []
    return state, heard(state, how, event("connection_established", server=server))


def joined(command: AddSubflow, port: int = 50000) -> Event:
    ends = (command.local, port, command.remote, command.remote_port)
    return Event("new_subflow", command.token, *ends, command.local_id, command.remote_id)


def test_a_client_joins_from_each_endpoint_once_the_connection_is_established() -> None:
    state, commands = begun(Settings(own=OWN, interfaces=WHERE))
    assert commands == [
        AddSubflow(7, "10.0.2.1", 1, "10.0.1.2", 5201),
        AddSubflow(7, "10.0.3.1", 2, "10.0.1.2", 5201),
    ]
    assert heard(state, Settings(own=OWN, interfaces=WHERE), event("connection_established")) == []


def test_the_side_that_listens_opens_nothing_and_announces_what_is_to_be_signalled() -> None:
    own = (*OWN, Own("10.0.4.1", "eth3", 3, ("signal",)))
    assert begun(Settings(own=own, interfaces=WHERE), server=True)[1] == [SendAddr(7, "10.0.4.1", 3)]


@pytest.mark.parametrize(("most", "expected"), [(0, 0), (1, 1), (8, 2)])
def test_no_more_subflows_are_opened_than_the_limit(most: int, expected: int) -> None:
    assert len(begun(Settings(own=OWN, interfaces=WHERE, subflows=most))[1]) == expected


def test_an_announced_address_is_joined_from_the_interface_that_is_near_to_it() -> None:
    how = Settings(interfaces=WHERE)
    state, _ = begun(how)
    [command] = heard(state, how, event("new_addr", remote="10.0.2.2", remote_port=5201, remote_id=4))
    assert command == AddSubflow(7, "10.0.2.1", 101, "10.0.2.2", 5201, 4)
    assert heard(state, how, event("new_addr", remote="10.0.2.2", remote_port=5201, remote_id=4)) == []


def test_no_more_announced_addresses_are_used_than_are_accepted() -> None:
    how = Settings(interfaces=WHERE, accepted=1)
    state, _ = begun(how)
    assert len(heard(state, how, event("new_addr", remote="10.0.2.2", remote_port=5201, remote_id=4))) == 1
    assert heard(state, how, event("new_addr", remote="10.0.3.2", remote_port=5201, remote_id=5)) == []


def test_a_peer_that_wants_no_joins_to_its_first_address_gets_none() -> None:
    how = Settings(own=OWN, interfaces=WHERE)
    assert heard(State(), how, event("connection_established", deny_join_id0=True)) == []


def test_a_full_mesh_has_each_pair_of_addresses_of_one_family() -> None:
    own = (Own("10.0.2.1", "eth1", 1, ("subflow",)), Own("2001:db8::1", "eth1", 2, ("subflow",)))
    how = Settings("fullmesh", own, WHERE)
    state, commands = begun(how)
    assert commands == [AddSubflow(7, "10.0.2.1", 1, "10.0.1.2", 5201)]
    more = heard(state, how, event("new_addr", remote="10.0.2.2", remote_port=5201, remote_id=4))
    assert more == [
        AddSubflow(7, "10.0.1.1", 0, "10.0.2.2", 5201, 4),
        AddSubflow(7, "10.0.2.1", 1, "10.0.2.2", 5201, 4),
    ]


def test_ndiffports_opens_subflows_between_the_same_addresses() -> None:
    assert begun(Settings("ndiffports", OWN, WHERE, ports=3))[1] == [AddSubflow(7, "10.0.1.1", 0, "10.0.1.2", 5201)] * 2


def test_handover_lets_a_backup_subflow_carry_data_when_its_interface_goes_down() -> None:
    how = Settings("handover", OWN[:1], WHERE)
    state, [command] = begun(how)
    assert isinstance(command, AddSubflow)
    assert command.backup
    heard(state, how, joined(command))
    assert moved(state, how, "eth0", up=False) == [
        SetBackup(7, "10.0.2.1", 50000, "10.0.1.2", 5201, backup=False),
        RemoveSubflow(7, *FIRST),
    ]
    assert moved(state, how, "eth0", up=False) == [], "it is down already"


def test_a_rule_is_for_its_event_its_side_and_its_interface() -> None:
    rules = (
        Rule("new_addr", Do("add_subflow", backup=True), interface="eth1", side="client"),
        Rule("connection_established", Do("send_addr", "eth2", port=99), side="server"),
    )
    how = Settings("rules", OWN, WHERE, rules=rules)
    state, commands = begun(how)
    assert commands == []
    assert heard(state, how, event("new_addr", remote="10.0.3.2", remote_port=1, remote_id=3)) == []
    found = heard(state, how, event("new_addr", local="", remote="10.0.2.2", remote_port=1, remote_id=4))
    assert found == [AddSubflow(7, "10.0.2.1", 1, "10.0.2.2", 1, 4, backup=True)]
    assert begun(how, server=True)[1] == [SendAddr(7, "10.0.3.1", 2, 99)]


def test_what_a_user_asks_for_is_done_for_every_connection_that_is_established() -> None:
    how = Settings("rules", OWN, WHERE)
    state, _ = begun(how)
    heard(state, how, event("connection_established", token=8))
    heard(state, how, event("new_connection", token=9))
    assert asked(state, how, Do("remove_addr", "eth1")) == [RemoveAddr(7, 1), RemoveAddr(8, 1)]


def test_events_are_decoded_with_ports_that_are_big_endian_and_flags_of_every_kernel() -> None:
    body = uapi.GENLMSGHDR.pack(uapi.MPTCP_EVENT_CREATED, 1, 0)
    body += wire.u32(uapi.MPTCP_ATTR_TOKEN, 0xDEADBEEF) + wire.attr(uapi.MPTCP_ATTR_SADDR4, bytes((10, 0, 1, 1)))
    body += wire.attr(uapi.MPTCP_ATTR_SPORT, b"\x9c\x40") + wire.u8(uapi.MPTCP_ATTR_LOC_ID, 0)
    older = parse_event(body + wire.u8(uapi.MPTCP_ATTR_SERVER_SIDE, 1))
    newer = parse_event(body + wire.u16(uapi.MPTCP_ATTR_FLAGS, 3))
    assert older is not None
    assert older == Event("new_connection", 0xDEADBEEF, "10.0.1.1", 40000, local_id=0, server=True, deny_join_id0=False)
    assert newer == msgspec.structs.replace(older, deny_join_id0=True)
    assert parse_event(uapi.GENLMSGHDR.pack(200, 1, 0)) is None


def test_a_command_has_its_port_in_host_order_and_the_address_of_a_family() -> None:
    fields = wire.attributes(AddSubflow(1, "2001:db8::1", 3, "2001:db8::2", 80).body(), uapi.GENLMSGHDR.size)
    remote = wire.attributes(fields[uapi.MPTCP_PM_ATTR_ADDR_REMOTE])
    assert struct.unpack("=H", remote[uapi.MPTCP_PM_ADDR_ATTR_PORT]) == (80,)
    assert len(remote[uapi.MPTCP_PM_ADDR_ATTR_ADDR6]) == 16


def socket(local: str, port: int, local_id: int, remote_id: int) -> Socket:
    return Socket(9, local, "10.0.1.2", port, 5201, local_id, remote_id, False, "ESTAB", 0, 0, 0, 0, 0, 0)


SYN = bytes.fromhex(  # 10.0.2.1:39721 joins 10.0.1.2:5201 (RFC 8684, 3.2), with the timestamp option before it
    "45000048000040004006236e0a0002010a000102"
    "9b291451000000010000000cd002fd2000000000"
    "020405b40402080a0000000100000000"
    "01030307"
    "1e0c1105deadbeef01020304"
)


def test_a_join_is_read_from_its_packet_with_its_token_address_id_and_backup() -> None:
    event = joins.parse_join(SYN)
    expected = Event("join_attempt", 0xDEADBEEF, "10.0.1.2", 5201, "10.0.2.1", 39721, None, 5, backup=True)
    assert event == expected
    assert joins.parse_join(SYN[:33] + b"\x12" + SYN[34:]) is None, "an answer, not a SYN"
    assert joins.parse_join(SYN[:-10] + b"\x00" + SYN[-9:]) is None, "MP_CAPABLE"


def test_the_first_rule_that_a_join_meets_decides_it_and_the_default_the_others() -> None:
    deny = Do("allow_join", allow=False)
    rules = (
        Rule("join_attempt", Do("allow_join"), from_backup=True),
        Rule("join_attempt", deny, side="server", remote="10.0.2.0/24"),
        Rule("join_attempt", deny, interface="eth2"),
    )
    how = Settings("rules", OWN, WHERE, rules=rules)
    state, _ = begun(how, server=True)

    def decided(remote: str, token: int = 7, **more: object) -> bool:
        return admission.allowed(state, how, event("join_attempt", token, remote=remote, **more))

    assert not decided("10.0.2.9")
    assert decided("10.0.2.9", backup=True), "the rule before"
    assert decided("10.0.2.9", token=8), "of that token no side is known"
    assert not decided("10.0.9.9", local="10.0.3.1")
    assert decided("10.0.9.9")
    state.joins = "deny"
    assert not decided("10.0.9.9")
    verdicts, left = admission.static(state, how)
    assert [r.side for r in left] == ["server"], "a filter does not know the side"
    assert verdicts == [
        joins.Verdict(joins.Match(backup=True), allow=True),
        joins.Verdict(joins.Match(("10.0.3.1",)), allow=False),
        joins.Verdict(joins.Match(), allow=False),
    ]


def test_a_manager_that_starts_late_knows_the_subflows_and_the_addresses_that_they_use() -> None:
    found = taken(None, 9, [socket("10.0.2.1", 2, 1, 3), socket("10.0.1.1", 1, 0, 0)], {5201})
    assert (found.first.local, found.server, found.late, found.established) == ("10.0.1.1", False, True, True)
    assert found.remotes == {3: ("10.0.1.2", 5201)}
    assert len(found.subflows) == 2


def test_the_ports_of_listeners_are_those_of_proc() -> None:
    head = "  sl  local_address rem_address   st\n"
    rows = "   0: 00000000:1451 00000000:0000 0A\n   1: 0100000A:9C40 0200000A:1451 01\n"
    assert ports((head + rows, "")) == {5201}


_HOSTS = st.sampled_from(["10.0.1.1", "10.0.2.1", "10.0.3.1", "10.0.1.2", "10.0.2.2", "2001:db8::1", ""])
_EVENTS = st.builds(
    Event,
    st.sampled_from([word for word, _ in EVENTS.values()]),
    st.integers(0, 3),
    *(_HOSTS, st.integers(0, 3), _HOSTS, st.integers(0, 3)),
    *(st.none() | st.integers(0, 255), st.none() | st.integers(0, 255)),
    *(st.none() | st.booleans(),) * 3,
    st.none() | st.integers(1, 120),
)
_HAPPENS = st.one_of(_EVENTS, st.tuples(st.sampled_from([*WHERE, "x"]), st.booleans()))
_RULES = st.builds(
    Rule,
    st.sampled_from([word for word, _ in EVENTS.values()]),
    st.builds(Do, st.sampled_from(["send_addr", "remove_addr", "add_subflow", "remove_subflow", "set_backup"])),
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["default", "fullmesh", "backup", "handover", "ndiffports", "rules"]),
    st.integers(0, 3),
    st.lists(_RULES, max_size=3),
    st.lists(_HAPPENS, max_size=40),
)
def test_whatever_happens_commands_are_for_connections_that_are_known_and_within_the_limit(
    policy: str, most: int, rules: list[Rule], happens: list[Event | tuple[str, bool]]
) -> None:
    own = (*OWN, Own("10.0.1.1", "eth0", 3, ("signal", "subflow")), Own("2001:db8::1", "eth1", 4, ("fullmesh",)))
    how = msgspec.convert({"policy": policy, "subflows": most, "interfaces": WHERE, "ports": 3}, Settings)
    how = msgspec.structs.replace(how, own=own, rules=tuple(rules))
    state = State()
    for happening in happens:
        found = moved(state, how, *happening) if isinstance(happening, tuple) else heard(state, how, happening)
        for command in found:
            assert command.token in state.connections
            if isinstance(happening, Event):
                assert command.token == happening.token
            if isinstance(command, AddSubflow):
                assert (":" in command.local) == (":" in command.remote)
            command.body()
        if policy != "rules":
            opened = {t: sum(isinstance(c, AddSubflow) and c.token == t for c in found) for t in state.connections}
            assert all(state.connections[t].extra() <= most for t, n in opened.items() if n)


FILE = """name: t
nodes:
  a: {mptcp: {endpoints: [{interface: eth1}], path_manager: %s}}
  b: {mptcp: {}}
links: [{ends: [a:eth0, b:eth0]}, {ends: [a:eth1, b:eth1]}]
workloads: {f: {iperf3: {from: a, to: b, protocol: mptcp, seconds: 3}}}
events: [%s]
"""


def loaded(tmp_path: Path, manager: str, event: str = "") -> object:
    (tmp_path / "t.yaml").write_text(FILE % (manager, event))
    return load(tmp_path / "t.yaml")


def test_the_plan_has_the_program_and_what_it_goes_by(tmp_path: Path) -> None:
    steps = plan(loaded(tmp_path, "{policy: backup}")).steps  # type: ignore[arg-type]
    assert "[a] sysctl -w net.mptcp.pm_type=1" in map(str, steps)
    [written] = [s for s in steps if isinstance(s, Write)]
    found = msgspec.json.decode(written.text, type=Settings)
    assert (found.policy, [(o.interface, o.id) for o in found.own[:1]]) == ("backup", [("eth1", 1)])
    assert "path-manager" not in str(plan(loaded(tmp_path, "kernel")))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("manager", "event", "message"),
    [
        ("{policy: backup, rules: [{on: new_addr, do: {add_subflow: {}}}]}", "", "either a `policy` or `rules`"),
        ("{ports: 3}", "", "`ports` is for `policy: ndiffports`"),
        ("{rules: [{on: new_addr, do: {}}]}", "", "exactly one command is needed"),
        ("{rules: [{on: new_addr, do: {add_subflow: {interface: eth9}}}]}", "", "a has no interface 'eth9'"),
        ("{rules: [{on: new_addr, do: {send_addr: {}}}]}", "", "`send_addr` needs the `interface`"),
        ("{rules: [{on: conn_closed, do: {add_subflow: {}}}]}", "", "there is no connection that a command"),
        ("{rules: [{on: join_attempt, do: {add_subflow: {}}}]}", "", "`join_attempt` is answered by `allow_join`"),
        ("{rules: [{on: new_addr, do: {allow_join: {}}}]}", "", "`join_attempt` is answered by `allow_join`"),
        ("{rules: [{on: new_addr, if: {backup: true}, do: {add_subflow: {}}}]}", "", "`backup` is for rules with"),
        (
            "{rules: [{on: join_attempt, if: {remote: here}, do: {allow_join: {}}}]}",
            "",
            "'here' is not a network such as",
        ),
        ("{unmanaged: allow}", "", "only rules for `join_attempt` ask the program"),
        ("{rules: [{on: new_addr, do: {add_subflow: {allow: true}}}]}", "", "`add_subflow` takes no `allow`"),
        ("kernel", "{at: 1s, node: a, mptcp: {add_subflow: {}}}", "the path manager of a is the kernel's"),
        ("userspace", "{at: 1s, node: a, mptcp: {set_backup: {port: 4}}}", "`set_backup` takes no `port`"),
    ],
)
def test_what_a_path_manager_can_not_do_is_said_at_its_place(
    tmp_path: Path, manager: str, event: str, message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[")) as told:
        loaded(tmp_path, manager, event)
    assert [p.line > 0 for p in told.value.problems] == [True]


def test_a_manager_that_starts_late_opens_what_is_missing_and_again_what_came_too_early() -> None:
    how = Settings(own=OWN, interfaces=WHERE)
    state = State({9: taken(None, 9, [socket("10.0.1.1", 1, 0, 0), socket("10.0.2.1", 2, 1, 0)], {5201})})
    missing = AddSubflow(9, "10.0.3.1", 2, "10.0.1.2", 5201)
    assert resumed(state, how) == [missing]
    assert resumed(state, how) == []
    failed(state, missing, early=True)
    assert heard(state, how, event("connection_established", token=9)) == [missing]
    failed(state, missing)
    assert resumed(state, how) == [], "a refusal for any other reason would come again"


def test_events_of_a_run_are_counted_on_its_clock_from_t_0_on() -> None:
    rows = [Noted(99.5, "new_subflow"), Noted(101.0, "new_subflow"), Noted(102.5), Noted(103.0, "new_subflow")]
    found = managed.events("a", rows, 100.0)
    assert found["a.mptcp.events.new_subflow"].series == ((0.0, 0.0), (1.0, 1.0), (3.0, 2.0))
    assert found["a.mptcp.events.new_subflow"].within(2.0, 4.0) == 1
    assert found["a.mptcp.events.new_subflow_first_s"].value == 1
    assert found["a.mptcp.events.conn_closed"].value == 0
    assert "a.mptcp.events.conn_closed_first_s" not in found


def test_a_check_of_an_event_that_there_is_not_is_an_error_with_what_may_be_meant(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(
        FILE % ("userspace", "") + "checks: [{metric: a.mptcp.events.new_subflows, min: 1}]\n"
    )
    with pytest.raises(InputError, match=r"mptcp has no metric 'events\.new_subflows'") as told:
        load(tmp_path / "t.yaml")
    assert "new_subflow" in str(told.value).partition("events.new_subflows")[2]


def test_each_event_and_command_has_the_kernels_name_beside_the_word_of_the_rfc() -> None:
    assert {k for _, k in EVENTS.values()} == set(mptcp_pm.KERNEL.values())
    assert len(mptcp_pm.COMMANDS) == 5
