"""Numbered multicast packets: their format, and the programs that send and receive them."""
