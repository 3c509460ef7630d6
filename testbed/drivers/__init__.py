"""Drivers: each module turns one kernel facility or tool into requests and pure functions, named after its verbs."""
