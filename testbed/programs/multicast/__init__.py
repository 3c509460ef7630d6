"""Multicast packets that are counted: their form, and the programs that send and receive them."""
