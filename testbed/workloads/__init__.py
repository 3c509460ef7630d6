"""Workloads: programs that run in a lab and are measured, as steps, and the parsers of their output."""
