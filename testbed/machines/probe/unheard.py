"""Whether nobody on this machine listens to MPTCP's events: in all network namespaces, for the kernel has one flag.

While somebody listens anywhere, the kernel accepts joins on every host whose path manager is in user space
(net/netlink/genetlink.c: genl_has_listeners). It does not list the listeners of other namespaces, so this tries a join.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

from testbed.drivers.mptcp import FAMILY
from testbed.drivers.mptcp_pm import AddSubflow
from testbed.linux import inet_diag, netlink, uapi, wire

_SIOCSIFFLAGS = 0x8914  # include/uapi/linux/sockios.h
_TRIES = 1000  # exchanges in which the kernel may take the join in, or refuse it


def asked() -> str:
    """Try a join between two sockets of this scratch namespace; OSError when the kernel accepts it."""
    Path("/proc/sys/net/mptcp/pm_type").write_text("1")
    with socket.socket() as sock:
        ioctl(sock, _SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", uapi.IFF_UP))
    with _pair() as (client, server), netlink.connect(wire.NETLINK_GENERIC) as generic:
        with netlink.connect(wire.NETLINK_SOCK_DIAG) as diag:
            port = client.getsockname()[1]
            [token] = [s.token for s in inet_diag.subflows(diag) if s.local_port == port]
        join = AddSubflow(token, "127.0.0.2", 1, "127.0.0.1", server.getsockname()[1])
        request = wire.Message(0, 0, join.body(), FAMILY)
        if refused := netlink.transact(generic, [request], netlink.family(generic, FAMILY)):
            raise OSError(refused[0].errno, f"a join could not be tried: {refused[0]}")
        for _ in range(_TRIES):
            if _counted("MPJoinRejected"):
                return "a join of a scratch namespace was refused: nobody listens to the events of MPTCP"
            if _counted("MPJoinAckRx"):
                why = "a process listens to the events of MPTCP, in this network namespace or another"
                raise OSError(errno.EBUSY, f"{why}: the kernel accepts joins everywhere (`ip mptcp monitor` is one)")
            _exchange(client, server)
    raise OSError(errno.ETIMEDOUT, "a join between two sockets of a scratch namespace neither came nor was refused")


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield both ends of a connection that takes joins: data was acknowledged."""
    made = (socket.AF_INET, socket.SOCK_STREAM, uapi.IPPROTO_MPTCP)
    with socket.socket(*made) as listener, socket.socket(*made) as client:
        listener.bind(("", 0))
        listener.listen()
        client.connect(("127.0.0.1", listener.getsockname()[1]))
        server, _ = listener.accept()
        with server:
            _exchange(client, server)
            _exchange(server, client)
            yield client, server


def _exchange(one: socket.socket, other: socket.socket) -> None:
    one.send(b"x")
    other.recv(1)


def _counted(name: str) -> int:
    """Return a counter of this namespace since it was made; OSError where the kernel has none of the name."""
    rows = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/net/netstat").read_text().splitlines()
    [names, values] = [row.split() for row in rows if row.startswith("MPTcpExt:")]
    if name not in names:
        raise OSError(errno.EOPNOTSUPP, f"this kernel has no counter MPTcpExt.{name}: it can't be found out")
    return int(values[names.index(name)])
