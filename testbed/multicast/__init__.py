"""Multicast packets that are counted: their form, and the two programs that send and receive them in a lab."""
