"""testbed's own programs that run inside a lab; each has a `main(words)`."""
