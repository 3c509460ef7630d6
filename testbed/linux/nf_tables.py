"""Expressions of nf_tables as bytes, of which its rules consist (include/uapi/linux/netfilter/nf_tables.h) (pure).

Integers in attributes are big-endian; what a register is compared with is as in the packet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from testbed.linux import uapi
from testbed.linux.wire import NLM_F_CREATE, Message, attr, nest, text


def be32(kind: int, value: int) -> bytes:
    """Encode a 32-bit number, which may be negative, in big-endian order."""
    return attr(kind, struct.pack("!i" if value < 0 else "!I", value))


def message(kind: int, flags: int, family: int, body: bytes) -> Message:
    """Return a request to nf_tables."""
    return Message(uapi.NFNL_SUBSYS_NFTABLES << 8 | kind, flags, uapi.NFGENMSG.pack(family, 0, 0) + body)


def rule(family: int, table: str, chain: str, expressions: Iterable[bytes]) -> Message:
    """Return the request for a rule at the end of a chain."""
    where = text(uapi.NFTA_RULE_TABLE, table) + text(uapi.NFTA_RULE_CHAIN, chain)
    body = where + nest(uapi.NFTA_RULE_EXPRESSIONS, *expressions)
    return message(uapi.NFT_MSG_NEWRULE, NLM_F_CREATE | uapi.NLM_F_APPEND, family, body)


def base_chain(family: int, table: str, name: str, kind: str, hook: int, priority: int) -> Message:
    """Return the request for a chain in which the kernel begins."""
    at = nest(uapi.NFTA_CHAIN_HOOK, be32(uapi.NFTA_HOOK_HOOKNUM, hook), be32(uapi.NFTA_HOOK_PRIORITY, priority))
    named = text(uapi.NFTA_CHAIN_TABLE, table) + text(uapi.NFTA_CHAIN_NAME, name)
    return message(uapi.NFT_MSG_NEWCHAIN, NLM_F_CREATE, family, named + at + text(uapi.NFTA_CHAIN_TYPE, kind))


def reset() -> bytes:
    """Encode the answer of a TCP reset."""
    return expression("reject", be32(uapi.NFTA_REJECT_TYPE, uapi.NFT_REJECT_TCP_RST))


def expression(name: str, *parts: bytes) -> bytes:
    """Encode an expression by its name and attributes."""
    return nest(uapi.NFTA_LIST_ELEM, text(uapi.NFTA_EXPR_NAME, name), nest(uapi.NFTA_EXPR_DATA, *parts))


def meta(key: int) -> bytes:
    """Encode the load of what the kernel knows of a packet."""
    return expression("meta", be32(uapi.NFTA_META_KEY, key), be32(uapi.NFTA_META_DREG, uapi.NFT_REG_1))


def payload(base: int, offset: int, size: int, *more: bytes) -> bytes:
    """Encode the access to bytes of a packet; `more` says which register, and how checksums change."""
    where = be32(uapi.NFTA_PAYLOAD_BASE, base) + be32(uapi.NFTA_PAYLOAD_OFFSET, offset)
    return expression("payload", where, be32(uapi.NFTA_PAYLOAD_LEN, size), *more)


def load(base: int, offset: int, size: int) -> bytes:
    """Encode the load of bytes of a packet."""
    return payload(base, offset, size, be32(uapi.NFTA_PAYLOAD_DREG, uapi.NFT_REG_1))


def masked(mask: bytes, xor: bytes = b"", register: int = uapi.NFT_REG_1) -> bytes:
    """Encode the register & mask ^ xor."""
    registers = be32(uapi.NFTA_BITWISE_SREG, register) + be32(uapi.NFTA_BITWISE_DREG, register)
    masks = _value(uapi.NFTA_BITWISE_MASK, mask) + _value(uapi.NFTA_BITWISE_XOR, xor or bytes(len(mask)))
    return expression("bitwise", registers, be32(uapi.NFTA_BITWISE_LEN, len(mask)), masks)


def compare(value: bytes, equal: bool = True) -> bytes:
    """Encode the comparison of the register with a value."""
    operator = be32(uapi.NFTA_CMP_OP, uapi.NFT_CMP_EQ if equal else uapi.NFT_CMP_NEQ)
    return expression("cmp", be32(uapi.NFTA_CMP_SREG, uapi.NFT_REG_1), operator, _value(uapi.NFTA_CMP_DATA, value))


def immediate(code: int, chain: str = "") -> bytes:
    """Encode what happens to a packet; a jump names its chain."""
    to = text(uapi.NFTA_VERDICT_CHAIN, chain) if chain else b""
    data = nest(uapi.NFTA_DATA_VERDICT, be32(uapi.NFTA_VERDICT_CODE, code), to)
    register = be32(uapi.NFTA_IMMEDIATE_DREG, uapi.NFT_REG_VERDICT)
    return expression("immediate", register, nest(uapi.NFTA_IMMEDIATE_DATA, data))


def _value(kind: int, data: bytes) -> bytes:
    return nest(kind, attr(uapi.NFTA_DATA_VALUE, data))
