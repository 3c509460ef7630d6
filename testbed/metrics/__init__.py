"""Raw rows to figures (pure)."""
