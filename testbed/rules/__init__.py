"""What does not fit together in a topology or an experiment (pure)."""
