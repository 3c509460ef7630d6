"""Channels of 20 MHz: frequencies, numbers as hostapd takes them, and operating classes (IEEE 802.11-2024 annex E)."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Band = Literal["2.4 GHz", "5 GHz", "6 GHz"]
# Channels where an access point must first listen for radars for a minute (DFS: ETSI EN 301 893, FCC part 15).
_RADAR = range(52, 145)
_FIVE = (*range(36, 65, 4), *range(100, 145, 4), *range(149, 178, 4))


class Channel(Struct, frozen=True):
    """One channel; `number` counts within its band, `op_class` is the global operating class."""

    band: Band
    number: int
    freq: int
    op_class: int

    @property
    def radar(self) -> bool:
        """Return whether radar detection is mandatory on this channel."""
        return self.band == "5 GHz" and self.number in _RADAR


def channel(freq: int) -> Channel | None:
    """Return the 20 MHz channel with a centre frequency in MHz, None if there is no such channel."""
    if 2412 <= freq <= 2472 and (freq - 2407) % 5 == 0:
        return Channel("2.4 GHz", (freq - 2407) // 5, freq, 81)
    if freq < 5950 and (freq - 5000) % 5 == 0 and (number := (freq - 5000) // 5) in _FIVE:
        low = 115 if number <= 48 else 118 if number <= 64 else 121 if number <= 144 else 125
        return Channel("5 GHz", number, freq, low)
    if 5955 <= freq <= 7115 and (freq - 5955) % 20 == 0:
        return Channel("6 GHz", (freq - 5950) // 5, freq, 131)
    return None
