"""What runs in a lab and is measured: servers and clients as steps, and how their output is read."""
