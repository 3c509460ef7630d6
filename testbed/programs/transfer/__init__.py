"""A transfer of so many bytes over TCP or MPTCP."""
