"""Netlink sockets: send batches of requests, receive errors and dumps."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fcntl import ioctl

from msgspec import Struct

from testbed.errors import LabError
from testbed.linux import calls as linux
from testbed.linux import uapi, wire
from testbed.linux.wire import Message

_SIOCGIFFLAGS = 0x8913  # include/uapi/linux/sockios.h
_IFREQ = struct.Struct("=16sH22x")


class Refusal(Struct, frozen=True):
    """The kernel's refusal of message number `at` of a batch."""

    at: int
    errno: int
    text: str

    def __str__(self) -> str:
        said = f": {self.text}" if self.text else ""
        return f"{os.strerror(self.errno)} (errno {self.errno}){said}"


@contextmanager
def inside(fd: int, home: int) -> Iterator[None]:
    """Run a block in the network namespace `fd`; this process must have a single thread."""
    linux.setns(fd, linux.CLONE_NEWNET)
    try:
        yield
    finally:
        linux.setns(home, linux.CLONE_NEWNET)


def connect(protocol: int) -> socket.socket:
    """Open a netlink socket in the namespace that this process is in."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    sock.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_CAP_ACK, 1)
    sock.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_EXT_ACK, 1)
    return sock


def transact(sock: socket.socket, batch: Sequence[Message], kind: int = 0) -> list[Refusal]:
    """Send a batch in one system call; return the refusals. The kernel performs all other messages of the batch.

    Only the last message asks for an acknowledgement, since errors of the others are reported anyway.
    `kind` is the message type of a generic netlink family; without it, each message has its own.
    """
    last = len(batch) - 1
    parts = []
    for seq, m in enumerate(batch):
        flags = wire.NLM_F_REQUEST | m.flags | (wire.NLM_F_ACK if seq == last else 0)
        # Lengths need no padding: attributes and headers are multiples of four bytes.
        parts += [wire.header(len(m.body), kind or m.kind, flags, seq), m.body]
    sock.send(b"".join(parts))
    refused: list[Refusal] = []
    while True:
        for got, _, seq, body in wire.messages(sock.recv(65536)):
            if got != uapi.NLMSG_ERROR:
                continue
            error = parse_error(body)
            # Positive numbers are not errors: hwsim answers NEW_RADIO with the radio's number (mac80211_hwsim.c).
            if error < 0:
                refused.append(Refusal(seq, -error, _why(body)))
            if seq == last:
                return refused


def batch(messages: Sequence[Message]) -> Refusal | None:
    """Send a batch to nf_tables, which performs all of it or nothing; return the first refusal."""
    subsystem = uapi.NFGENMSG.pack(0, 0, socket.htons(uapi.NFNL_SUBSYS_NFTABLES))
    begin, end = (Message(kind, 0, subsystem) for kind in (uapi.NFNL_MSG_BATCH_BEGIN, uapi.NFNL_MSG_BATCH_END))
    parts = []
    for seq, m in enumerate((begin, *messages, end)):
        ack = wire.NLM_F_ACK if 0 < seq <= len(messages) else 0
        parts += [wire.header(len(m.body), m.kind, wire.NLM_F_REQUEST | m.flags | ack, seq), m.body]
    # A socket for each batch: after a refusal the kernel may acknowledge the other messages, or not.
    with connect(wire.NETLINK_NETFILTER) as sock:
        sock.send(b"".join(parts))
        while True:
            for kind, _, seq, body in wire.messages(sock.recv(1 << 16)):
                if kind == uapi.NLMSG_ERROR and (error := parse_error(body)) < 0:
                    return Refusal(seq - 1, -error, _why(body))
                if kind == uapi.NLMSG_ERROR and seq == len(messages):
                    return None


def _why(body: bytes) -> str:
    """Return the kernel's own words in an NLMSG_ERROR, "" without any."""
    said = wire.attributes(body, uapi.NLMSGERR.size).get(uapi.NLMSGERR_ATTR_MSG, b"")
    return said.rstrip(b"\0").decode(errors="replace")


@wire.decoder
def parse_error(body: bytes) -> int:
    """Return the error number of an NLMSG_ERROR; 0 means acknowledged."""
    return int(struct.unpack_from("=i", body)[0])


def dump(sock: socket.socket, kind: int, body: bytes) -> list[bytes]:
    """Dump a table; return the bodies of its entries. Raise LabError if the kernel refuses."""
    sock.send(wire.header(len(body), kind, wire.NLM_F_REQUEST | wire.NLM_F_DUMP, 1) + body)
    entries: list[bytes] = []
    while True:
        # The kernel sends at most 32 KiB at once (net/netlink/af_netlink.c). A larger buffer would be mapped for each
        # call, which costs 0.1 ms a node.
        for got, _, _, entry in wire.messages(sock.recv(1 << 16)):
            if got == uapi.NLMSG_DONE:
                return entries
            if got == uapi.NLMSG_ERROR:
                raise LabError(f"netlink dump {kind}: {os.strerror(-parse_error(entry))}")
            entries.append(entry)


def listen(protocol: int, groups: Sequence[int], room: int = 0) -> socket.socket:
    """Open a socket in this process's namespace that hears multicast groups, without waiting.

    `room` is how many bytes of messages may wait, where that is not the kernel's default.
    """
    sock = connect(protocol)
    if room:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    # A socket hears nothing before it has an address, and bind(2) takes the first 32 groups from it: in this order.
    sock.bind((0, 0))
    for group in groups:
        sock.setsockopt(uapi.SOL_NETLINK, uapi.NETLINK_ADD_MEMBERSHIP, group)
    sock.setblocking(False)
    return sock


def heard(sock: socket.socket) -> Iterator[bytes | None]:
    """Yield what has arrived at a socket that does not wait; None where the kernel dropped messages (ENOBUFS)."""
    while True:
        try:
            yield sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as e:
            if e.errno != errno.ENOBUFS:
                raise
            yield None


# A request for the interfaces without their statistics
_LINKS = bytes(uapi.IFINFOMSG.size) + wire.u32(uapi.IFLA_EXT_MASK, uapi.RTEXT_FILTER_SKIP_STATS)


def links(sock: socket.socket) -> Iterator[tuple[str, int]]:
    """Yield the name and index of every interface of the socket's namespace."""
    yield from map(parse_link, dump(sock, uapi.RTM_GETLINK, _LINKS))


@wire.decoder
def parse_link(entry: bytes) -> tuple[str, int]:
    """Return the name and index of an interface."""
    _, _, index, _, _ = uapi.IFINFOMSG.unpack_from(entry)
    return wire.attributes(entry, uapi.IFINFOMSG.size)[uapi.IFLA_IFNAME].rstrip(b"\0").decode(), index


def link_entries(sock: socket.socket) -> list[bytes]:
    """Return the kernel's description of every interface, undecoded."""
    return dump(sock, uapi.RTM_GETLINK, _LINKS)


def running(sock: socket.socket, ifname: str) -> bool:
    """Return whether an interface of the socket's namespace exists and is operational (IFF_RUNNING, RFC 2863)."""
    return bool(flags(sock, ifname) & uapi.IFF_RUNNING)


def flags(sock: socket.socket, ifname: str) -> int:
    """Return the flags of an interface of the socket's namespace, 0 if it does not exist."""
    # net/socket.c takes this ioctl from sockets of any family; a dump of the links takes twenty times as long.
    try:
        answer = ioctl(sock, _SIOCGIFFLAGS, _IFREQ.pack(ifname.encode(), 0))
    except OSError as e:
        if e.errno != errno.ENODEV:
            raise
        return 0
    return int(_IFREQ.unpack(answer)[1])


def family(sock: socket.socket, name: str) -> int:
    """Return the message type of a generic netlink family, 0 if this kernel does not have it."""
    return parse_family(controller(sock, name))


def controller(sock: socket.socket, name: str) -> bytes:
    """Ask the controller about a generic netlink family; return its answer (one or more messages)."""
    body = uapi.GENLMSGHDR.pack(uapi.CTRL_CMD_GETFAMILY, 1, 0) + wire.text(uapi.CTRL_ATTR_FAMILY_NAME, name)
    sock.send(wire.header(len(body), uapi.GENL_ID_CTRL, wire.NLM_F_REQUEST, 1) + body)
    return sock.recv(65536)


@wire.decoder
def parse_family(data: bytes) -> int:
    """Return the message type in an answer of the controller, 0 if that is a refusal."""
    for got, _, _, entry in wire.messages(data):
        if got == uapi.GENL_ID_CTRL:
            fields = wire.attributes(entry, uapi.GENLMSGHDR.size)
            return int(struct.unpack("=H", fields[uapi.CTRL_ATTR_FAMILY_ID])[0])
    return 0


def groups(sock: socket.socket, family: str) -> dict[str, int]:
    """Return the multicast groups of a generic netlink family."""
    return parse_groups(controller(sock, family))


@wire.decoder
def parse_groups(data: bytes) -> dict[str, int]:
    """Return the multicast groups in an answer of the controller."""
    for kind, _, _, entry in wire.messages(data):
        if kind == uapi.GENL_ID_CTRL:
            told = wire.attributes(entry, uapi.GENLMSGHDR.size).get(uapi.CTRL_ATTR_MCAST_GROUPS, b"")
            return dict(map(_group, wire.attributes(told).values()))
    return {}


def _group(nest: bytes) -> tuple[str, int]:
    fields = wire.attributes(nest)
    name = fields[uapi.CTRL_ATTR_MCAST_GRP_NAME].rstrip(b"\0").decode()
    return name, struct.unpack("=I", fields[uapi.CTRL_ATTR_MCAST_GRP_ID])[0]


def dumps_by(sock: socket.socket, family: int, command: int) -> frozenset[int]:
    """Return the attributes by which a generic netlink family's dump can be asked for (CTRL_CMD_GETPOLICY).

    Empty where the kernel does not tell, which it does since Linux 5.10.
    """
    body = uapi.GENLMSGHDR.pack(uapi.CTRL_CMD_GETPOLICY, 1, 0)
    body += wire.u16(uapi.CTRL_ATTR_FAMILY_ID, family) + wire.u32(uapi.CTRL_ATTR_OP, command)
    try:
        return parse_policy(dump(sock, uapi.GENL_ID_CTRL, body), command)
    except LabError:  # refused: an operation without a policy, or an older kernel
        return frozenset()


@wire.decoder
def parse_policy(entries: Sequence[bytes], command: int) -> frozenset[int]:
    """Return the attributes that the dump of a command takes, as the controller's answer has them."""
    policies: dict[int, set[int]] = {}
    wanted = -1
    for entry in entries:
        fields = wire.attributes(entry, uapi.GENLMSGHDR.size)
        operations = wire.attributes(fields.get(uapi.CTRL_ATTR_OP_POLICY, b""))
        if (dumped := wire.attributes(operations.get(command, b"")).get(uapi.CTRL_ATTR_POLICY_DUMP)) is not None:
            (wanted,) = struct.unpack("=I", dumped)
        for index, attributes in wire.attributes(fields.get(uapi.CTRL_ATTR_POLICY, b"")).items():
            policies.setdefault(index, set()).update(wire.attributes(attributes))
    return frozenset(policies.get(wanted, ()))
