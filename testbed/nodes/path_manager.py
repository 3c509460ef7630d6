"""The word `path_manager`: the kernel's own, or a program in user space with a policy or rules."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Field

from testbed.drivers.facts import FileHas
from testbed.drivers.mptcp import EndpointAdd
from testbed.drivers.mptcp_pm import Kind, Manage
from testbed.drivers.sysctl import SysctlSet
from testbed.nodes.place import Place
from testbed.programs.mptcp.state import Do, Own, Rule, Settings
from testbed.spec import Spec
from testbed.steps import START, Configure, Spawn, Step, Wait, Write

EVENTS, JOINS = "mptcp-events.jsonl", "mptcp-joins.log"  # what joins are decided by where they can't be asked about
_NAME = "path-manager"
Policy = Literal["default", "fullmesh", "backup", "handover", "ndiffports"]
COMMANDS = ("send_addr", "remove_addr", "add_subflow", "remove_subflow", "set_backup", "allow_join")
Path = tuple[str | int, ...]


class Act(Spec):
    """What a command of a rule is about; the connection and the peer's address are those of the event."""

    interface: str | None = Field(
        None, description="Whose addresses; left out, the one nearest to the peer's address, or every subflow"
    )
    backup: bool | None = Field(None, description="For add_subflow (false) and set_backup (true)")
    port: int | None = Field(None, ge=1, le=65535, description="For send_addr: announce this port as well")
    remote_id: int | None = Field(
        None,
        ge=0,
        le=255,
        description="For add_subflow: the ID of the peer's address; that of the event, or 0, when left out",
    )
    allow: bool | None = Field(None, description="For allow_join: let the join in (true), or answer it with a reset")


class Doing(Spec):
    """One command of a path manager, by its word in the path-management netlink RFC."""

    send_addr: Act | None = Field(None, description="Announce an address (ADD_ADDR)")
    remove_addr: Act | None = Field(None, description="Withdraw an address (RM_ADDR)")
    add_subflow: Act | None = Field(None, description="Open a subflow (MP_JOIN)")
    remove_subflow: Act | None = Field(None, description="Close subflows")
    set_backup: Act | None = Field(None, description="Change the priority of subflows (MP_PRIO)")
    allow_join: Act | None = Field(
        None,
        description="Decide a join (MP_JOIN SYN); as an event of a run, all joins from then on that no rule decides",
    )

    def stated(self) -> list[tuple[str, Act]]:
        """Return the commands that are stated."""
        return [(name, act) for name in COMMANDS if (act := getattr(self, name)) is not None]


class Condition(Spec):
    """When a rule applies: to events of an interface, on one side of connections, to joins from a network."""

    interface: str | None = Field(None, description="The interface of this node that the event is about")
    side: Literal["client", "server"] | None = Field(None, description="Whether this node opened the connection")
    remote: str | None = Field(None, description="For join_attempt: a network that the peer's address is in")
    backup: bool | None = Field(None, description="For join_attempt: whether the peer asks for a backup subflow")


class Reaction(Spec):
    """A rule: which event, when, and what is done."""

    on: Kind = Field(description="An event of a connection")
    if_: Condition = Field(Condition(), alias="if", description="When the rule applies; always when left out")
    do: Doing = Field(description="Exactly one command")


class Userspace(Spec):
    """A path manager in user space: a policy, or rules of one's own in its place."""

    policy: Policy | None = Field(None, description="What it does by itself; `default` does what the kernel's would")
    ports: int | None = Field(None, ge=2, le=8, description="Subflows of a connection with `ndiffports`; 2 by default")
    rules: tuple[Reaction, ...] = Field((), max_length=100, description="Reactions to events, in place of a policy")
    joins: Literal["allow", "deny"] | None = Field(
        None, description="What becomes of joins that no rule decides; by default they are let in"
    )
    unmanaged: Literal["allow", "deny"] | None = Field(
        None, description="What becomes of joins while the program that decides them is dead; `deny` by default"
    )


def _written(value: Any) -> Any:
    return {} if value == "userspace" else None if value == "kernel" else value


# None is the kernel's.
PathManager = Annotated[
    Userspace | None,
    BeforeValidator(_written, json_schema_input_type=Literal["kernel", "userspace"] | Userspace),
]


def faults(manager: Userspace, place: Place) -> Iterator[tuple[Path, str]]:
    """Yield (path below `path_manager`, sentence) for each fault."""
    deciding = [r for r in manager.rules if r.on == "join_attempt"]
    if len(deciding) < len(manager.rules) and manager.policy is not None:
        yield ("rules",), "a path manager has either a `policy` or `rules`: remove one of them"
    if manager.unmanaged is not None and not deciding:
        why = "only rules for `join_attempt` ask the program about each join"
        yield ("unmanaged",), f"{why}: remove `unmanaged`, or add such a rule"
    if manager.ports is not None and manager.policy != "ndiffports":
        yield ("ports",), "`ports` is for `policy: ndiffports`"
    for n, rule in enumerate(manager.rules):
        at: Path = ("rules", n)
        yield from (((*at, "do", *path), what) for path, what in doing_faults(rule.do, place))
        if rule.if_.interface is not None and place.interface(rule.if_.interface) is None:
            yield (*at, "if", "interface"), place.lacks(rule.if_.interface)
        yield from (((*at, *path), what) for path, what in _admission(rule))
        if rule.on in ("conn_closed", "listener_created", "listener_closed"):
            yield (*at, "on"), f"after `{rule.on}` there is no connection that a command could be for"


def _admission(rule: Reaction) -> Iterator[tuple[Path, str]]:
    """Yield the faults of a rule that decides joins, or that has the words of one."""
    if (rule.on == "join_attempt") != (rule.do.allow_join is not None):
        yield ("do",), "`join_attempt` is answered by `allow_join`, and only that is: use both or neither"
    for name in ("remote", "backup"):
        if rule.on != "join_attempt" and getattr(rule.if_, name) is not None:
            yield ("if", name), f"`{name}` is for rules with `on: join_attempt`"
    if rule.if_.remote is not None:
        try:
            ip_network(rule.if_.remote)
        except ValueError as e:
            yield ("if", "remote"), f"{rule.if_.remote!r} is not a network such as 10.0.1.0/24: {e}"
    if rule.do.allow_join is not None and rule.do.allow_join.interface is not None:
        yield ("do", "allow_join", "interface"), "say it in `if: {interface: ...}`: the join is that of the event"


def doing_faults(doing: Doing, place: Place) -> Iterator[tuple[Path, str]]:
    """Yield (path below a command, sentence) for each fault."""
    stated = doing.stated()
    if len(stated) != 1:
        yield (), f"exactly one command is needed, of {', '.join(COMMANDS)}"
    for name, act in stated:
        yield from (((name, *path), what) for path, what in _act(name, act, place))


def _act(name: str, act: Act, place: Place) -> Iterator[tuple[Path, str]]:
    if act.interface is not None and place.interface(act.interface) is None:
        yield ("interface",), place.lacks(act.interface)
    if act.interface is None and name in ("send_addr", "remove_addr"):
        yield (), f"`{name}` needs the `interface` whose addresses are meant"
    if act.backup is not None and name not in ("add_subflow", "set_backup"):
        yield ("backup",), f"`{name}` takes no `backup`: it is for add_subflow and set_backup"
    if act.allow is not None and name != "allow_join":
        yield ("allow",), f"`{name}` takes no `allow`: it is for allow_join"
    if act.remote_id is not None and name != "add_subflow":
        yield ("remote_id",), f"`{name}` takes no `remote_id`: it is for add_subflow"
    if act.port is not None and name != "send_addr":
        yield ("port",), f"`{name}` takes no `port`: it is for send_addr"


def settings(manager: Userspace, place: Place, endpoints: tuple[EndpointAdd, ...], limits: tuple[int, int]) -> Settings:
    """Return what the program of a node goes by; the limits are of subflows and of accepted addresses."""
    own = tuple(Own(e.address, e.dev, e.id, e.flags, e.port) for e in endpoints)
    addresses = {i.name: i.addresses for i in place.interfaces if i.addresses}
    policy = manager.policy or ("rules" if manager.rules else "default")
    rules = tuple(map(_rule, manager.rules))
    joins = manager.joins or "", manager.unmanaged or "deny"
    return Settings(policy, own, addresses, *limits, manager.ports or 2, rules, *joins)


def _rule(rule: Reaction) -> Rule:
    when = rule.if_
    return Rule(rule.on, _do(rule.do), when.interface or "", when.side or "", when.remote or "", when.backup)


def _do(doing: Doing) -> Do:
    [(name, act)] = doing.stated()
    backup = act.backup if act.backup is not None else name == "set_backup"
    what = (act.interface or "", backup, act.port or 0, act.remote_id, act.allow is not False)
    return Do(name, *what)  # type: ignore[arg-type]  # of COMMANDS


def asked(doing: Doing) -> Manage:
    """Return the request of an event to the program of a node."""
    return Manage(msgspec.json.encode(_do(doing)).decode())


def steps(place: Place, wanted: Settings) -> Iterator[Step]:
    """Yield the start of the program, and the wait until it listens: before that, the kernel refuses every join."""
    node = place.node
    # Linux 6.15 has path_manager, and pm_type with the same meaning; older kernels have pm_type alone.
    yield Configure(node, SysctlSet("net.mptcp.pm_type", "1"))
    yield Write(f"{node}/{_NAME}.json", msgspec.json.encode(wanted).decode() + "\n", node)
    yield Spawn(
        node,
        _NAME,
        ("testbed.path-manager", f"{node}/{_NAME}.json", f"{node}/{EVENTS}", f"{node}/{JOINS}"),
        forked=True,
    )
    yield Wait(node, FileHas(f"{node}/{EVENTS}"), START, _NAME)
