"""System calls and netlink bytes: how Linux is asked, independent of topologies."""
