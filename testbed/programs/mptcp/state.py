"""What a path manager knows: its settings, and the connections with their addresses and subflows."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Literal

from msgspec import Struct, field

from testbed.drivers.mptcp_pm import AddSubflow, Command, Event, Kind

Policy = Literal["default", "fullmesh", "backup", "handover", "ndiffports", "rules"]
Ends = tuple[str, int, str, int]  # local address and port, remote address and port


class Own(Struct, frozen=True):
    """An address of this host that may carry subflows or be announced; its ID and flags as of an endpoint."""

    address: str
    interface: str
    id: int
    flags: tuple[str, ...] = ()
    port: int = 0


class Do(Struct, frozen=True):
    """The command of a rule: what it needs of a token, addresses and ports comes from the event."""

    command: Literal["send_addr", "remove_addr", "add_subflow", "remove_subflow", "set_backup", "allow_join"]
    interface: str = ""
    backup: bool = False
    port: int = 0
    remote_id: int | None = None
    allow: bool = True


class Rule(Struct, frozen=True):
    """A reaction to one kind of event, on one side of connections or on both, and of one interface or of all.

    Of joins, `remote` is a network of the peer and `from_backup` says whether the peer asks for a backup subflow.
    """

    on: Kind
    do: Do
    interface: str = ""
    side: Literal["client", "server", ""] = ""
    remote: str = ""
    from_backup: bool | None = None


class Settings(Struct, frozen=True):
    """What the manager of a node goes by; `interfaces` has the node's addresses, `address/length`, by interface.

    `subflows` and `accepted` are the limits of the in-kernel path manager: subflows beyond the first, and addresses of
    the peer that are used. `ports` is how many subflows `ndiffports` has in all.
    `joins` is what becomes of joins that no rule decides, `unmanaged` of those that a dead manager should decide.
    `room` is how many bytes of events may wait, where a busy server opens hundreds of connections at once.
    """

    policy: Policy = "default"
    own: tuple[Own, ...] = ()
    interfaces: dict[str, tuple[str, ...]] = {}
    subflows: int = 8
    accepted: int = 8
    ports: int = 2
    rules: tuple[Rule, ...] = ()
    joins: Literal["allow", "deny", ""] = ""
    unmanaged: Literal["allow", "deny"] = "deny"
    room: int = 4 << 20

    def interface(self, address: str) -> str:
        """Return the interface that has an address, "" if none does."""
        found = (n for n, given in self.interfaces.items() if address in (a.partition("/")[0] for a in given))
        return next(found, "")

    def id_of(self, address: str) -> int:
        """Return the ID of an address of this host: that of the plan, or one beyond them by its place."""
        for own in self.own:
            if own.address == address:
                return own.id
        known = [a.partition("/")[0] for given in self.interfaces.values() for a in given]
        return 100 + known.index(address) if address in known else 99

    def near(self, remote: str) -> str:
        """Return the address of this host that is in the network of a remote one, "" if there is none."""
        far = ip_address(remote)
        given = (ip_interface(a) for found in self.interfaces.values() for a in found)
        return next((str(a.ip) for a in given if a.version == far.version and far in a.network), "")


class Subflow(Struct, frozen=True):
    """A subflow; `backup` is what this host asked for."""

    local: str
    local_port: int
    remote: str
    remote_port: int
    local_id: int = 0
    remote_id: int = 0
    backup: bool = False

    def ends(self) -> Ends:
        """Return what identifies it within its connection."""
        return self.local, self.local_port, self.remote, self.remote_port


class Connection(Struct):
    """A connection, by its local token; `remotes` are the peer's addresses and ports by ID, without that of ID 0.

    `opening` has what was asked for and has neither come nor failed, `tried` every local address asked for, `withheld`
    says that the peer wants no joins to its first address (RFC 8684, 3.1, flag C). What was announced before this
    manager began is not known: `late`.
    """

    token: int
    first: Subflow
    server: bool
    established: bool = False
    withheld: bool = False
    late: bool = False
    remotes: dict[int, tuple[str, int]] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)  # of `remotes`
    subflows: dict[Ends, Subflow] = field(default_factory=dict)
    opening: list[AddSubflow] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    announced: set[int] = field(default_factory=set)

    def extra(self) -> int:
        """Return how many subflows there are, or are being opened, beyond the first."""
        return len([s for s in self.subflows if s != self.first.ends()]) + len(self.opening)


class State(Struct):
    """The connections by token, the interfaces that are down, and what an event of the run said about joins."""

    connections: dict[int, Connection] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    joins: Literal["allow", "deny", ""] = ""


def note(state: State, event: Event) -> Connection | None:
    """Take an event into the state; return its connection, None if it is of none, or of one that is not known."""
    known = state.connections.get(event.token)
    match event.event:
        case "new_connection" | "connection_established":
            if not (event.local and event.remote) or (":" in event.local) != (":" in event.remote):
                return known
            if known is None:
                first = Subflow(event.local, event.local_port, event.remote, event.remote_port)
                known = state.connections[event.token] = Connection(event.token, first, bool(event.server))
                known.subflows[first.ends()] = first
            known.withheld = known.withheld or bool(event.deny_join_id0)
            known.established = known.established or event.event == "connection_established"
        case "conn_closed":
            state.connections.pop(event.token, None)
            return None
        case "new_addr" if known is not None and event.remote_id and event.remote:
            known.remotes[event.remote_id] = (event.remote, event.remote_port)
        case "addr_removed" if known is not None and event.remote_id is not None:
            known.remotes.pop(event.remote_id, None)
            known.used.discard(event.remote_id)
        case "new_subflow" | "subflow_closed" if known is not None and event.local and event.remote:
            _moved(known, event)
        case _:
            pass
    return known


def _moved(known: Connection, event: Event) -> None:
    """Take a subflow that came, or went, into its connection."""
    ends = (event.local, event.local_port, event.remote, event.remote_port)
    asked = next((c for c in known.opening if (c.local, c.remote, c.remote_port) == (ends[0], *ends[2:])), None)
    if asked is not None:
        known.opening.remove(asked)
    if event.event == "subflow_closed":
        known.subflows.pop(ends, None)
        return
    known.subflows[ends] = Subflow(
        *ends, event.local_id or 0, event.remote_id or 0, asked.backup if asked is not None else False
    )


def failed(state: State, command: Command, early: bool = False) -> None:
    """Take back what a command that the kernel refused was to do; one that came too `early` may be given again."""
    known = state.connections.get(command.token)
    if known is not None and isinstance(command, AddSubflow) and command in known.opening:
        known.opening.remove(command)
        if early:
            known.tried.discard(command.local)
