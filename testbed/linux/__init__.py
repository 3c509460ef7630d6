"""System calls and netlink bytes: what Linux is asked with, without a word about topologies."""
