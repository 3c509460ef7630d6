"""The sampler: the program that reads every node's counters during a run."""
