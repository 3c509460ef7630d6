"""The path manager in user space: its policies, and the process that hears events and sends commands."""
