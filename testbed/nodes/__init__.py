"""Nodes and their roles, one file for each role."""
