"""What MPTCP connections count on both hosts, family by family: `make conformance`."""
