"""The microVM: its image, its processes, and how it communicates with the host."""
