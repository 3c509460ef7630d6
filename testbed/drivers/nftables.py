"""What a middlebox does to packets, in nf_tables: one table a node, with a chain and a counter for each rule (nft(8)).

Requests are encoded as nft would send them, so that a lab needs no nft. An integer in an attribute is big-endian, and
what is written to a register, or compared with one, is as in the packet (include/uapi/linux/netfilter/nf_tables.h).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Literal

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
    payload,
    reset,
    rule,
)
from testbed.linux.wire import NLM_F_CREATE, Message, attr, attributes, decoder, nest, text
from testbed.plain import word
from testbed.steps import Request

TABLE = "middlebox"
Family = Literal["inet", "bridge"]
Way = Literal["iifname", "oifname"]
Base = Literal["PREROUTING", "FORWARD", "POSTROUTING"]
Action = Literal["count", "strip", "drop", "reject", "corrupt", "limit", "nat", "firewall"]
# By base chain: its type, its hook, and its priority; NAT is at NF_IP_PRI_NAT_SRC.
_BASES: dict[Base, tuple[str, int, int]] = {
    "PREROUTING": ("filter", 0, 0),
    "FORWARD": ("filter", 2, 0),
    "POSTROUTING": ("nat", 4, 100),
}
_FAMILIES: dict[Family, int] = {"inet": 1, "bridge": uapi.AF_BRIDGE}
_KIND, _TCP, _UDP = 30, 6, 17  # the TCP option of MPTCP (RFC 8684), and numbers of protocols
SUBTYPES = {
    "mp_capable": 0,
    "mp_join": 1,
    "dss": 2,
    "add_addr": 3,
    "rm_addr": 4,
    "mp_prio": 5,
    "mp_fail": 6,
    "mp_fastclose": 7,
    "mp_tcprst": 8,
}
# Which bits of the octet with the flags of TCP count, and what they must be (RFC 9293): SYN is 2, ACK is 16.
_PACKETS = {"syn": (0x12, 0x02, "syn | ack", "syn"), "syn_ack": (0x12, 0x12, "syn | ack", "syn | ack")}
# An octet that is payload in every full segment, whatever options it has, and even, for the sake of the checksum.
_AT = 260
_WEEK = 7 * 86400
_INVALID, _NEW = 1, 8  # netfilter/nf_conntrack_common.h: NF_CT_STATE_BIT
_Part = tuple[str, bytes]  # an expression as nft writes it, and as the kernel reads it


class NftTable(Request, frozen=True):
    """Make the table of a middlebox, with the chains in which the kernel begins."""

    family: Family
    bases: tuple[Base, ...]

    def __str__(self) -> str:
        words = [f"add table {self.family} {TABLE}"]
        for base in self.bases:
            kind, _, priority = _BASES[base]
            inside = f"{{ type {kind} hook {base.lower()} priority {priority}; }}"
            words.append(f"add chain {self.family} {TABLE} {base} {inside}")
        return _nft(*words)

    def messages(self) -> Iterator[Message]:
        """Yield what is sent in one transaction."""
        yield _made(uapi.NFT_MSG_NEWTABLE, self.family, text(uapi.NFTA_TABLE_NAME, TABLE))
        for base in self.bases:
            yield base_chain(_FAMILIES[self.family], TABLE, base, *_BASES[base])


class NftChain(Request, frozen=True):
    """Make the chain and the counter of a rule; packets come to it by these interfaces, or all without any."""

    family: Family
    name: str
    base: Base
    ways: tuple[tuple[Way, str], ...] = ()

    def __str__(self) -> str:
        here = f"{self.family} {TABLE}"
        jumps = [f'add rule {here} {self.base} {way} "{ifname}" jump {self.name}' for way, ifname in self.ways]
        jumps = jumps or [f"add rule {here} {self.base} jump {self.name}"]
        return _nft(f"add counter {here} {self.name}", f"add chain {here} {self.name}", *jumps)

    def messages(self) -> Iterator[Message]:
        """Yield what is sent in one transaction."""
        kind = be32(uapi.NFTA_OBJ_TYPE, uapi.NFT_OBJECT_COUNTER) + nest(uapi.NFTA_OBJ_DATA)
        named = text(uapi.NFTA_OBJ_TABLE, TABLE) + text(uapi.NFTA_OBJ_NAME, self.name)
        yield _made(uapi.NFT_MSG_NEWOBJ, self.family, named + kind)
        chain = text(uapi.NFTA_CHAIN_TABLE, TABLE) + text(uapi.NFTA_CHAIN_NAME, self.name)
        yield _made(uapi.NFT_MSG_NEWCHAIN, self.family, chain)
        jump = immediate(uapi.NFT_JUMP, self.name)
        keys = {"iifname": uapi.NFT_META_IIFNAME, "oifname": uapi.NFT_META_OIFNAME}
        ways = [[meta(keys[way]), compare(ifname.encode().ljust(16, b"\0"))] for way, ifname in self.ways] or [[]]
        for way in ways:
            yield rule(_FAMILIES[self.family], TABLE, self.base, [*way, jump])


class NftRule(Request, frozen=True):
    """Fill the chain of a rule: which packets, how many of them at most, and what happens to them.

    `rate` is in bits and `burst` in bytes, as of a link; both are for the action `limit`.
    """

    family: Family
    name: str
    action: Action
    subtype: str = ""
    packet: str = ""
    protocol: str = ""
    source: str = ""
    destination: str = ""
    port: int = 0
    times: int = 0
    rate: int = 0
    burst: int = 0

    def __str__(self) -> str:
        return _nft(f"add rule {self.family} {TABLE} {self.name} {' '.join(t for t, _ in self.parts() if t)}")

    def messages(self) -> Iterator[Message]:
        """Yield what is sent in one transaction."""
        yield rule(_FAMILIES[self.family], TABLE, self.name, [encoded for _, encoded in self.parts()])

    def parts(self) -> Iterator[_Part]:
        """Yield the expressions of the rule; a packet goes on while they hold."""
        tcp = self.subtype or self.packet or self.action in ("strip", "corrupt") or self.protocol == "tcp"
        if tcp or self.protocol:
            yield from _protocol("tcp" if tcp else self.protocol)
        for side, network in (("saddr", self.source), ("daddr", self.destination)):
            if network:
                yield from _address(self.family, side, network)
        if self.port:
            yield f"{'tcp' if tcp else 'udp'} dport {self.port}", load(uapi.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
            yield "", compare(struct.pack("!H", self.port))
        if self.packet:
            yield from _flags(self.packet)
        if self.subtype or self.action == "strip":
            yield from _subtype(self.subtype or "any")
        yield from _before(self)
        if self.times:
            yield f"limit rate 1/week burst {self.times} packets", _limit(1, _WEEK, self.times, uapi.NFT_LIMIT_PKTS)
        kind = be32(uapi.NFTA_OBJREF_IMM_TYPE, uapi.NFT_OBJECT_COUNTER)
        yield f"counter name {self.name}", expression("objref", kind, text(uapi.NFTA_OBJREF_IMM_NAME, self.name))
        yield from _done(self, bool(tcp))


class NftFlush(Request, frozen=True):
    """Empty the chain of a rule: packets pass, and its counter stays."""

    family: Family
    name: str

    def __str__(self) -> str:
        return _nft(f"flush chain {self.family} {TABLE} {self.name}")

    def messages(self) -> Iterator[Message]:
        """Yield what is sent in one transaction."""
        chain = text(uapi.NFTA_RULE_TABLE, TABLE) + text(uapi.NFTA_RULE_CHAIN, self.name)
        yield message(uapi.NFT_MSG_DELRULE, 0, _FAMILIES[self.family], chain)


Nft = NftTable | NftChain | NftRule | NftFlush


def counters() -> bytes:
    """Encode the request for all counters of the table: the body of a dump."""
    return uapi.NFGENMSG.pack(socket.AF_UNSPEC, 0, 0) + text(uapi.NFTA_OBJ_TABLE, TABLE)


COUNTERS = (uapi.NFNL_SUBSYS_NFTABLES << 8) | uapi.NFT_MSG_GETOBJ


@decoder
def parse_counter(entry: bytes) -> tuple[str, int]:
    """Decode an entry of that dump: a counter's name and packets."""
    fields = attributes(entry, uapi.NFGENMSG.size)
    (packets,) = struct.unpack("!Q", attributes(fields[uapi.NFTA_OBJ_DATA])[uapi.NFTA_COUNTER_PACKETS])
    return fields[uapi.NFTA_OBJ_NAME].rstrip(b"\0").decode(), packets


def _before(rule: NftRule) -> Iterator[_Part]:
    """Yield what an action asks of a packet before that counts."""
    if rule.action == "corrupt":
        register = be32(uapi.NFTA_PAYLOAD_DREG, uapi.NFT_REG_2)
        yield "", payload(uapi.NFT_PAYLOAD_TRANSPORT_HEADER, _AT, 2, register)  # not in a short one
    if rule.action == "firewall":
        state = _NEW | _INVALID
        key = be32(uapi.NFTA_CT_KEY, uapi.NFT_CT_STATE) + be32(uapi.NFTA_CT_DREG, uapi.NFT_REG_1)
        yield "ct state new,invalid", expression("ct", key) + masked(struct.pack("=I", state))
        yield "", compare(bytes(4), equal=False)
    if rule.action == "limit":
        rate, burst = rule.rate // 8, rule.burst
        yield (
            f"limit rate over {rate} bytes/second burst {burst} bytes",
            _limit(rate, 1, burst, uapi.NFT_LIMIT_PKT_BYTES, over=True),
        )


def _done(rule: NftRule, tcp: bool) -> Iterator[_Part]:
    """Yield what happens to a packet."""
    if rule.action in ("drop", "limit", "firewall"):
        yield "drop", immediate(uapi.NF_DROP)
    elif rule.action == "reject" and tcp:
        yield "reject with tcp reset", reset()
    elif rule.action == "reject":
        kind = be32(uapi.NFTA_REJECT_TYPE, uapi.NFT_REJECT_ICMPX_UNREACH)
        code = attr(uapi.NFTA_REJECT_ICMP_CODE, bytes((uapi.NFT_REJECT_ICMPX_ADMIN_PROHIBITED,)))
        yield "reject with icmpx admin-prohibited", expression("reject", kind, code)
    elif rule.action == "strip":
        for _ in range(2):  # an expression strips one option, and DSS may have another one beside it
            yield "reset tcp option mptcp", expression("exthdr", *_option())
    elif rule.action == "corrupt":
        # The checksum of TCP is mended, as if the octet had been so from the start: MPTCP's own alone tells.
        source = be32(uapi.NFTA_PAYLOAD_SREG, uapi.NFT_REG_2)
        csum = be32(uapi.NFTA_PAYLOAD_CSUM_TYPE, 1) + be32(uapi.NFTA_PAYLOAD_CSUM_OFFSET, 16)
        where = f"@th,{_AT * 8},16"
        xor = masked(b"\xff\xff", b"\x55\0", uapi.NFT_REG_2)
        yield f"{where} set {where} ^ 0x5500", xor + payload(uapi.NFT_PAYLOAD_TRANSPORT_HEADER, _AT, 2, source, csum)
    elif rule.action == "nat":
        yield "masquerade", expression("masq")


def _protocol(name: str) -> Iterator[_Part]:
    numbers = {"tcp": _TCP, "udp": _UDP}
    yield f"meta l4proto {name}", meta(uapi.NFT_META_L4PROTO) + compare(bytes((numbers[name],)))


def _address(family: Family, side: str, network: str) -> Iterator[_Part]:
    found = ip_network(network)
    v6 = found.version == 6
    at, length = ((8, 24) if v6 else (12, 16))[side == "daddr"], found.max_prefixlen // 8
    if family == "bridge":
        yield "", meta(uapi.NFT_META_PROTOCOL) + compare(struct.pack("!H", 0x86DD if v6 else 0x0800))
    else:
        yield "", meta(uapi.NFT_META_NFPROTO) + compare(bytes((socket.AF_INET6 if v6 else socket.AF_INET,)))
    loaded = load(uapi.NFT_PAYLOAD_NETWORK_HEADER, at, length)
    loaded += masked(found.netmask.packed) if found.prefixlen < found.max_prefixlen else b""
    yield f"{'ip6' if v6 else 'ip'} {side} {network}", loaded + compare(found.network_address.packed)


def _flags(packet: str) -> Iterator[_Part]:
    loaded = load(uapi.NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1)
    if packet == "not_syn":
        yield "tcp flags & syn == 0", loaded + masked(b"\x02") + compare(b"\0")
        return
    bits, value, mask, wanted = _PACKETS[packet]
    yield f"tcp flags & ({mask}) == {wanted}", loaded + masked(bytes((bits,))) + compare(bytes((value,)))


def _subtype(name: str) -> Iterator[_Part]:
    """Yield what compares the subtype of a packet's first MPTCP option."""
    size = be32(uapi.NFTA_EXTHDR_OFFSET, 2) + be32(uapi.NFTA_EXTHDR_LEN, 1)
    loaded = expression("exthdr", be32(uapi.NFTA_EXTHDR_DREG, uapi.NFT_REG_1), *_option(), size)
    if name == "any":
        there = be32(uapi.NFTA_EXTHDR_OFFSET, 0) + be32(uapi.NFTA_EXTHDR_LEN, 1)
        there += be32(uapi.NFTA_EXTHDR_FLAGS, uapi.NFT_EXTHDR_F_PRESENT)
        register = be32(uapi.NFTA_EXTHDR_DREG, uapi.NFT_REG_1)
        yield "tcp option mptcp exists", expression("exthdr", register, *_option(), there) + compare(b"\1")
        return
    if name == "add_addr_echo":  # RFC 8684, 3.4.1: the last bit of the octet with the subtype
        yield f"tcp option @{_KIND},16,8 & 0xf1 == 0x31", loaded + masked(b"\xf1") + compare(b"\x31")
        return
    number = SUBTYPES[name]
    yield f"tcp option mptcp subtype {number}", loaded + masked(b"\xf0") + compare(bytes((number << 4,)))


def _option() -> tuple[bytes, bytes]:
    return attr(uapi.NFTA_EXTHDR_TYPE, bytes((_KIND,))), be32(uapi.NFTA_EXTHDR_OP, uapi.NFT_EXTHDR_OP_TCPOPT)


def _limit(rate: int, unit: int, burst: int, kind: int, over: bool = False) -> bytes:
    counts = attr(uapi.NFTA_LIMIT_RATE, struct.pack("!Q", rate)) + attr(uapi.NFTA_LIMIT_UNIT, struct.pack("!Q", unit))
    flags = be32(uapi.NFTA_LIMIT_FLAGS, uapi.NFT_LIMIT_F_INV if over else 0)
    return expression("limit", counts, be32(uapi.NFTA_LIMIT_BURST, burst), be32(uapi.NFTA_LIMIT_TYPE, kind), flags)


def _made(kind: int, family: Family, body: bytes) -> Message:
    return message(kind, NLM_F_CREATE, _FAMILIES[family], body)


def _nft(*commands: str) -> str:
    return f"nft {word('; '.join(commands))}"
