"""Machines that ssh reaches."""
