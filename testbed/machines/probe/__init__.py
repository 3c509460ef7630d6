"""Find out what this machine offers."""
