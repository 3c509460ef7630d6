"""Addresses as the kernel has them in binary (pure)."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address


def host(raw: bytes) -> str:
    """Return 4 or 16 bytes as text; an IPv4-mapped address, of an AF_INET6 socket, as the IPv4 address."""
    address = ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
