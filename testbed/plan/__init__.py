"""Topology to network to steps: every name and address is decided here (pure)."""
