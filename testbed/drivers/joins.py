"""Joins on their way in: each MP_JOIN SYN is logged (NFLOG), decided (NFQUEUE), or let in by rules of nf_tables.

The rules are sent by netlink, since nft(8) can't write a queue where the kernel has only that of xtables
(CONFIG_NETFILTER_XT_TARGET_NFQUEUE without CONFIG_NFT_QUEUE).
Sources: include/uapi/linux/netfilter/nf_tables.h, nfnetlink_queue.h, nfnetlink_log.h; RFC 8684, 3.2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import ip_address, ip_network

from msgspec import Struct

from testbed.drivers.mptcp_pm import Event
from testbed.linux import uapi
from testbed.linux.nf_tables import (
    base_chain,
    be32,
    compare,
    expression,
    immediate,
    load,
    masked,
    message,
    meta,
    reset,
    rule,
)
from testbed.linux.wire import NLM_F_CREATE, Message, attr, attributes, decoder, text, u8

TABLE = "testbed-joins"
GROUP = QUEUE = 5  # of NFLOG and of NFQUEUE: each network namespace has its own
DENIED = 0x6A6F696E  # the mark of a SYN that is to be answered with a reset
_TCP, _OPTION, _MP_JOIN, _SYN, _SYN_ACK = 6, 30, 0x10, 0x02, 0x12
_BACKUP = 0x01
_IPV6 = 40  # bytes of its header


class Match(Struct, frozen=True):
    """Which joins a rule is for: those to local addresses, from the peer's network, as backup or not; all of them."""

    local: tuple[str, ...] = ()
    remote: str = ""
    backup: bool | None = None


class Verdict(Struct, frozen=True):
    """A rule without a program: joins that match are allowed or answered with a reset."""

    match: Match
    allow: bool


def rules(verdicts: Sequence[Verdict]) -> list[Message]:
    """Return the requests for a table in which the first verdict that matches a join decides; each is logged."""
    chains = [_chain("joins", -1), _rule("joins", *_joins(), _log())]
    for verdict in verdicts:
        ends = [immediate(uapi.NF_ACCEPT)] if verdict.allow else [reset()]
        chains += [_rule("joins", *_joins(verdict.match.backup), *m, *ends) for m in _matches(verdict.match)]
    return _table(chains)


def queue(bypass: bool, xtables: bool) -> list[Message]:
    """Return the requests for a table that gives each join to a program; `bypass` lets them in while there is none."""
    to = _xt_queue(bypass) if xtables else _nft_queue(bypass)
    mark = [meta(uapi.NFT_META_MARK), compare(struct.pack("=I", DENIED)), reset()]
    return _table([_chain("joins", -1), _rule("joins", *_joins(), to), _chain("denied", 1), _rule("denied", *mark)])


def bind_queue() -> list[Message]:
    """Return the requests for a socket to get the packets of the queue."""
    mode = struct.pack("!IB", 0xFFFF, uapi.NFQNL_COPY_PACKET)
    command = struct.pack("!BxH", uapi.NFQNL_CFG_CMD_BIND, 0)
    return [
        _message(uapi.NFNL_SUBSYS_QUEUE, uapi.NFQNL_MSG_CONFIG, QUEUE, attr(kind, data))
        for kind, data in ((uapi.NFQA_CFG_CMD, command), (uapi.NFQA_CFG_PARAMS, mode))
    ]


def bind_log() -> list[Message]:
    """Return the requests for a socket to get what is logged, each packet at once."""
    mode = struct.pack("!IBx", 0xFFFF, uapi.NFULNL_COPY_PACKET)
    parts = (
        attr(uapi.NFULA_CFG_CMD, bytes((uapi.NFULNL_CFG_CMD_BIND,))),
        attr(uapi.NFULA_CFG_MODE, mode) + be32(uapi.NFULA_CFG_QTHRESH, 1),
    )
    return [_message(uapi.NFNL_SUBSYS_ULOG, uapi.NFULNL_MSG_CONFIG, GROUP, part) for part in parts]


def verdict(packet: int, allow: bool) -> bytes:
    """Encode the answer about a packet of the queue, which goes on with a mark if it is to be reset."""
    body = attr(uapi.NFQA_VERDICT_HDR, struct.pack("!II", uapi.NF_ACCEPT, packet))
    body += b"" if allow else be32(uapi.NFQA_MARK, DENIED)
    return _message(uapi.NFNL_SUBSYS_QUEUE, uapi.NFQNL_MSG_VERDICT, QUEUE, body).body


VERDICT = uapi.NFNL_SUBSYS_QUEUE << 8 | uapi.NFQNL_MSG_VERDICT


@decoder
def parse_message(kind: int, entry: bytes) -> tuple[int, Event] | None:
    """Return a packet's number in the queue (-1: it was logged) and its event; None for what is no join."""
    fields = attributes(entry, uapi.NFGENMSG.size)
    number, payload = -1, uapi.NFULA_PAYLOAD
    if kind == uapi.NFNL_SUBSYS_QUEUE << 8 | uapi.NFQNL_MSG_PACKET:
        (number,) = struct.unpack_from("!I", fields[uapi.NFQA_PACKET_HDR])
        payload = uapi.NFQA_PAYLOAD
    elif kind != uapi.NFNL_SUBSYS_ULOG << 8 | uapi.NFULNL_MSG_PACKET:
        return None
    event = parse_join(fields[payload])
    return None if event is None else (number, event)


@decoder
def parse_join(packet: bytes) -> Event | None:
    """Decode an IP packet with the SYN of a MP_JOIN; None for any other packet."""
    if packet[0] >> 4 == 4:
        protocol, hosts, at = packet[9], (packet[12:16], packet[16:20]), (packet[0] & 15) * 4
    else:
        protocol, hosts, at = packet[6], (packet[8:24], packet[24:40]), _IPV6
    if protocol != _TCP or packet[at + 13] & _SYN_ACK != _SYN:
        return None
    remote_port, local_port = struct.unpack_from("!HH", packet, at)
    remote, local = (str(ip_address(host)) for host in hosts)
    options, place = packet[at + 20 : at + (packet[at + 12] >> 4) * 4], 0
    while place < len(options) and options[place]:
        if options[place] == 1:  # no operation
            place += 1
            continue
        size = options[place + 1]
        if size < 2:
            return None
        if options[place] == _OPTION and size == 12 and options[place + 2] & 0xF0 == _MP_JOIN:
            (token,) = struct.unpack_from("!I", options, place + 4)
            backup = bool(options[place + 2] & _BACKUP)
            number = options[place + 3]
            return Event("join_attempt", token, local, local_port, remote, remote_port, None, number, backup)
        place += size
    return None


def _table(chains: list[Message]) -> list[Message]:
    """Return a batch that replaces the table as a whole: to remove it, it must be there."""
    name = text(uapi.NFTA_TABLE_NAME, TABLE)
    new = message(uapi.NFT_MSG_NEWTABLE, NLM_F_CREATE, uapi.NFPROTO_INET, name)
    return [new, message(uapi.NFT_MSG_DELTABLE, 0, uapi.NFPROTO_INET, name), new, *chains]


def _chain(name: str, priority: int) -> Message:
    return base_chain(uapi.NFPROTO_INET, TABLE, name, "filter", uapi.NF_INET_LOCAL_IN, priority)


def _rule(chain: str, *expressions: bytes) -> Message:
    return rule(uapi.NFPROTO_INET, TABLE, chain, expressions)


def _joins(backup: bool | None = None) -> list[bytes]:
    """Return expressions that only the SYN of a MP_JOIN passes."""
    wanted = _MP_JOIN | (_BACKUP if backup else 0)
    option = u8(uapi.NFTA_EXTHDR_TYPE, _OPTION) + be32(uapi.NFTA_EXTHDR_OFFSET, 2) + be32(uapi.NFTA_EXTHDR_LEN, 1)
    option += be32(uapi.NFTA_EXTHDR_OP, uapi.NFT_EXTHDR_OP_TCPOPT) + be32(uapi.NFTA_EXTHDR_DREG, uapi.NFT_REG_1)
    return [
        *(meta(uapi.NFT_META_L4PROTO), compare(bytes((_TCP,)))),
        *(load(uapi.NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1), masked(bytes((_SYN_ACK,))), compare(bytes((_SYN,)))),
        *(expression("exthdr", option), masked(bytes((0xF0 | (0 if backup is None else _BACKUP),)))),
        compare(bytes((wanted,))),
    ]


def _matches(match: Match) -> list[list[bytes]]:
    """Return the expressions of a match: a rule for each local address, or for each family where only that counts."""
    net = ip_network(match.remote) if match.remote else None
    found = []
    for host in match.local or ("",):
        local = ip_address(host) if host else None
        versions = {v.version for v in (net, local) if v is not None}
        if len(versions) > 1:
            continue
        parts: list[bytes] = []
        if versions:
            v6 = 6 in versions
            parts += [meta(uapi.NFT_META_NFPROTO), compare(bytes((uapi.NFPROTO_IPV6 if v6 else uapi.NFPROTO_IPV4,)))]
            size, source, target = (16, 8, 24) if v6 else (4, 12, 16)
            if net is not None:
                parts += [load(uapi.NFT_PAYLOAD_NETWORK_HEADER, source, size), masked(net.netmask.packed)]
                parts.append(compare(net.network_address.packed))
            if local is not None:
                parts += [load(uapi.NFT_PAYLOAD_NETWORK_HEADER, target, size), compare(local.packed)]
        found.append(parts)
    return found


def _log() -> bytes:
    group = attr(uapi.NFTA_LOG_GROUP, struct.pack("!H", GROUP)) + attr(uapi.NFTA_LOG_QTHRESHOLD, struct.pack("!H", 1))
    return expression("log", group)


def _nft_queue(bypass: bool) -> bytes:
    flags = uapi.NFT_QUEUE_FLAG_BYPASS if bypass else 0
    values = ((uapi.NFTA_QUEUE_NUM, QUEUE), (uapi.NFTA_QUEUE_TOTAL, 1), (uapi.NFTA_QUEUE_FLAGS, flags))
    return expression("queue", b"".join(attr(kind, struct.pack("!H", value)) for kind, value in values))


def _xt_queue(bypass: bool) -> bytes:
    """Encode the target of xtables (struct xt_NFQ_info_v3), which nf_tables can use (net/netfilter/nft_compat.c)."""
    info = struct.pack("=HHH2x", QUEUE, 1, int(bypass))
    body = text(uapi.NFTA_TARGET_NAME, "NFQUEUE") + be32(uapi.NFTA_TARGET_REV, 3) + attr(uapi.NFTA_TARGET_INFO, info)
    return expression("target", body)


def _message(subsystem: int, kind: int, which: int, body: bytes) -> Message:
    return Message(subsystem << 8 | kind, 0, bytes(2) + struct.pack("!H", which) + body)
