"""A lab's sandbox, its holder, and the requests to it."""
