"""Links that follow a trace: what changes their qdiscs at the times of a run."""
