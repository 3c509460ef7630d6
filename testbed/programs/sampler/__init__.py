"""The program that reads every node's counters while a lab runs."""
