"""The control sockets of hostapd and wpa_supplicant (wpa_ctrl.h: one datagram a command, one an answer)."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Tool = Literal["hostapd", "wpa"]


class Control(Struct, frozen=True, tag=True):
    """A command for a daemon, that must answer OK; `folder` holds the socket of the interface."""

    tool: Tool
    folder: str
    ifname: str
    command: str

    def __str__(self) -> str:
        return f"{self.tool}_cli -p {self.folder} -i {self.ifname} raw {self.command}"

    def path(self) -> str:
        """Return the socket of the daemon."""
        return f"{self.folder}/{self.ifname}"


class Controlled(Struct, frozen=True, tag=True):
    """A daemon has made the control socket of an interface."""

    tool: Tool
    folder: str
    ifname: str

    def __str__(self) -> str:
        return f"control socket {self.folder}/{self.ifname}"
