"""Where a lab runs: this kernel, a microVM or a machine that ssh reaches, and how one of them is chosen."""
