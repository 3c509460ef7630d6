"""Connections, subflows and addresses as rows: the RFC's word for each, and beside it the kernel's own name (pure)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from msgspec import Struct

from testbed.drivers.mptcp import FLAGS
from testbed.linux.inet_diag import Subflow
from testbed.programs.mptcp.state import Connection

What = Literal["connections", "subflows", "addresses"]
Row = dict[str, Any]
_ATTRIBUTE = "MPTCP_SUBFLOW_ATTR_TOKEN_LOC"
_UNKNOWN = "announced before the manager began, if at all: the kernel lists no addresses of the peer"


class Told(Struct, frozen=True):
    """What a manager knows of a connection beyond the kernel's tables; `late`: only since after its beginning."""

    token: int
    server: bool
    established: bool
    late: bool
    remotes: dict[int, tuple[str, int]] = {}


class Local(Struct, frozen=True):
    """An address of this host in the kernel's path manager: of one connection, or an endpoint of all (token 0)."""

    address: str
    id: int
    flags: int
    token: int = 0


def told(known: Iterable[Connection]) -> list[Told]:
    """Return what is known of connections, as it is sent to those who ask."""
    return [Told(c.token, c.server, c.established, c.late, c.remotes) for c in known]


def connections(found: Sequence[Subflow], known: Iterable[Told]) -> Iterator[Row]:
    """Yield a row for each connection: a connection_id of the RFC is the kernel's local token."""
    by = {k.token: k for k in known}
    for token in _tokens(found):
        flows = _of(found, token)
        row: Row = {
            "what": "connection",
            "kernel": _ATTRIBUTE,
            "connection_id": token,
            **_ends(flows[0]),
            "subflows": len(flows),
        }
        if (k := by.get(token)) is not None:
            row |= {"side": "server" if k.server else "client", "established": k.established, "late": k.late}
        yield row


def subflows(found: Sequence[Subflow]) -> Iterator[Row]:
    """Yield a row for each subflow: the kernel has no subflow_id, it goes by both addresses and ports."""
    for token in _tokens(found):
        for s in _of(found, token):
            yield {
                "what": "subflow",
                "kernel": "INET_ULP_INFO_MPTCP",
                "connection_id": token,
                **_ends(s),
                "local_id": s.local_id,
                "remote_id": s.remote_id,
                "backup": s.backup,
                "state": s.state,
                "rtt_ms": s.rtt_ms,
                "bytes_sent": s.bytes_sent,
                "bytes_received": s.bytes_received,
            }


def addresses(found: Sequence[Subflow], known: Iterable[Told], local: Iterable[Local]) -> Iterator[Row]:
    """Yield a row for each address_id: this host's, and those of the peer of each connection.

    What the peer announced before anybody listened is a row of its own, `unknown`: it is not that there is none.
    """
    for one in local:
        row: Row = {"what": "local_address", "kernel": "MPTCP_PM_CMD_GET_ADDR"}
        row |= {"connection_id": one.token} if one.token else {}
        flags = [name for name, bit in FLAGS.items() if one.flags & bit]
        yield {**row, "address_id": one.id, "address": one.address, "flags": flags}
    by = {k.token: k for k in known}
    for token in _tokens(found):
        k = by.get(token)
        heard = {} if k is None else k.remotes
        used = {s.remote_id: (s.remote, s.remote_port) for s in _of(found, token)}
        for number, (address, port) in sorted({**used, **heard}.items()):
            kernel = "MPTCP_SUBFLOW_ATTR_ID_REM" if number in used else "MPTCP_EVENT_ANNOUNCED"
            row = {"what": "remote_address", "kernel": kernel, "connection_id": token, "address_id": number}
            yield {**row, "address": address, "port": port, "used": number in used}
        if k is None or k.late:
            row = {"what": "remote_address", "kernel": "MPTCP_EVENT_ANNOUNCED", "connection_id": token}
            yield {**row, "address_id": "unknown", "why": _UNKNOWN}


def text(row: Row) -> str:
    """Return a row, or a line of a manager's log, for people: the word, the kernel's name, and the rest."""
    rest = dict(row)
    time = f"{rest.pop('t'):.6f} " if "t" in rest else ""
    kernel = f" ({rest.pop('kernel')})" if "kernel" in rest else ""
    word = next((str(rest.pop(k)) for k in ("what", "event", "command") if k in rest), "")
    ends = ""
    if {"local", "remote"} <= rest.keys():
        here, there = (f"{rest.pop(k)}:{rest.pop(f'{k}_port', 0)}" for k in ("local", "remote"))
        ends = f" {here} > {there}"
    more = "".join(f" {name}={_shown(value)}" for name, value in rest.items() if value not in ("", None))
    return f"{time}{word}{kernel}{ends}{more}".strip()


def _shown(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ",".join(map(_shown, value)) or "none"
        case dict():
            return "/".join(map(_shown, value.values()))
        case _:
            return str(value)


def _tokens(found: Iterable[Subflow]) -> list[int]:
    return list(dict.fromkeys(s.token for s in found))


def _of(found: Iterable[Subflow], token: int) -> list[Subflow]:
    """Return the subflows of a connection, its first one first: only that has ID 0 on both sides."""
    return sorted((s for s in found if s.token == token), key=lambda s: (s.local_id, s.remote_id))


def _ends(s: Subflow) -> Row:
    return {"local": s.local, "local_port": s.local_port, "remote": s.remote, "remote_port": s.remote_port}
