"""The sandbox of a lab, and what happens in it."""
