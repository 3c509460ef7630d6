"""The control sockets of hostapd and wpa_supplicant (wpa_ctrl.h: one datagram for each command and answer)."""

from __future__ import annotations

from typing import Literal

from testbed.steps import Probe, Request

Tool = Literal["hostapd", "wpa"]


class Control(Request, frozen=True):
    """Send a command to a daemon, which must answer OK; `folder` holds the interface's socket."""

    tool: Tool
    folder: str
    ifname: str
    command: str

    def __str__(self) -> str:
        return f"{self.tool}_cli -p {self.folder} -i {self.ifname} raw {self.command}"

    def path(self) -> str:
        """Return the path of the daemon's socket."""
        return f"{self.folder}/{self.ifname}"


class Controlled(Probe, frozen=True):
    """A daemon has created the control socket of an interface."""

    tool: Tool
    folder: str
    ifname: str

    def __str__(self) -> str:
        return f"control socket {self.folder}/{self.ifname}"
