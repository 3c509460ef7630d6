"""What this machine offers, and how it is asked."""
