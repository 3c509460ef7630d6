"""The microVM: its image, its processes, and what passes between it and the host."""
