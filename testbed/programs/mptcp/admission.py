"""Which joins are let in: rules for `join_attempt` in their order, and the default (pure)."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from testbed.drivers.joins import Match, Verdict
from testbed.drivers.mptcp_pm import Event
from testbed.programs.mptcp.state import Rule, Settings, State


def deciding(settings: Settings) -> list[Rule]:
    """Return the rules that decide joins."""
    return [r for r in settings.rules if r.on == "join_attempt"]


def allowed(state: State, settings: Settings, event: Event) -> bool:
    """Say whether a join is let in: the first rule that is about it decides, then the default."""
    found = next((r for r in deciding(settings) if _about(state, settings, r, event)), None)
    return default(state, settings) if found is None else found.do.allow


def default(state: State, settings: Settings) -> bool:
    """Return what becomes of joins that no rule is about: as an event of the run has said, else as the file does."""
    return (state.joins or settings.joins) != "deny"


def _about(state: State, settings: Settings, rule: Rule, event: Event) -> bool:
    known = state.connections.get(event.token)
    side = "" if known is None else "server" if known.server else "client"
    if rule.side not in ("", side) or rule.interface not in ("", settings.interface(event.local)):
        return False
    if rule.from_backup is not None and rule.from_backup != event.backup:
        return False
    return not rule.remote or ip_address(event.remote) in ip_network(rule.remote)


def static(state: State, settings: Settings) -> tuple[list[Verdict], list[Rule]]:
    """Return rules of nf_tables that do the same where no program is asked, and the rules that they can't have.

    The kernel's filter knows the packet, but not which side of its connection this host is.
    """
    found, left = [], []
    for rule in deciding(settings):
        if rule.side:
            left.append(rule)
            continue
        local = tuple(a.partition("/")[0] for a in settings.interfaces.get(rule.interface, ()))
        if local or not rule.interface:
            found.append(Verdict(Match(local, rule.remote, rule.from_backup), rule.do.allow))
    return ([*found, Verdict(Match(), allow=False)] if not default(state, settings) else found), left
