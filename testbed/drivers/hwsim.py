"""Simulated radios of mac80211_hwsim as requests (drivers/net/wireless/virtual/mac80211_hwsim.h)."""

from __future__ import annotations

from testbed.linux import uapi
from testbed.linux.wire import Message, Space, attr, text, u32
from testbed.steps import Request

FAMILY = "MAC80211_HWSIM"
NEW_RADIO, DEL_RADIO = 4, 5  # HWSIM_CMD_*
# HWSIM_ATTR_*
CHANNELS, DESTROY_ON_CLOSE, RADIO_NAME, NO_VIF, MLO_SUPPORT = 9, 16, 17, 18, 25


class RadioAdd(Request, frozen=True):
    """Make a radio without an interface in the lab's own medium: it hears no other lab's radios, and ends with its lab.

    It has one channel even with MLO: the kernel does not count the links of one MLD as channels, and radios with more
    could not use a userspace medium.
    """

    name: str
    mlo: bool

    def __str__(self) -> str:
        return f"hwsim radio add {self.name} channels 1{' mlo' if self.mlo else ''}"

    def encode(self, space: Space) -> Message:
        """Encode; the kernel answers with the radio's number in place of an error."""
        return Message(0, 0, command(NEW_RADIO, radio(space.radio(self.name), self.mlo)), FAMILY)


def radio(name: str, mlo: bool) -> bytes:
    """Encode the attributes of a radio."""
    body = text(RADIO_NAME, name) + u32(CHANNELS, 1) + attr(NO_VIF, b"") + attr(DESTROY_ON_CLOSE, b"")
    return body + (attr(MLO_SUPPORT, b"") if mlo else b"")


def command(cmd: int, body: bytes) -> bytes:
    """Encode struct genlmsghdr before attributes."""
    return uapi.GENLMSGHDR.pack(cmd, 1, 0) + body
