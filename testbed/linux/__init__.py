"""System calls, what their refusals mean, and netlink bytes: how Linux is asked, independent of topologies."""
