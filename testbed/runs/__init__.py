"""Bring a lab up, run one case, run many."""
