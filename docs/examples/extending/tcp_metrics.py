"""What the kernel remembers of TCP peers, such as their Fast Open cookies (ip-tcp_metrics(8))."""

from __future__ import annotations

from testbed.linux import uapi
from testbed.linux.wire import Message, Space
from testbed.steps import Request

FAMILY = "tcp_metrics"
_DEL, _VERSION = 2, 1  # include/uapi/linux/tcp_metrics.h: TCP_METRICS_CMD_DEL, TCP_METRICS_GENL_VERSION


class Forget(Request, frozen=True):
    """Forget every peer; the kernel takes this from root alone (net/ipv4/tcp_metrics.c: GENL_ADMIN_PERM)."""

    def __str__(self) -> str:
        return "ip tcp_metrics flush all"

    def encode(self, space: Space) -> Message:
        """Encode: a deletion without an address is one of all of them."""
        return Message(0, 0, uapi.GENLMSGHDR.pack(_DEL, _VERSION, 0), FAMILY)
