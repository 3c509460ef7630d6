"""Where a lab runs: how a machine is asked what it offers."""
