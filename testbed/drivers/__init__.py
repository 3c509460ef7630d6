"""One kernel facility or tool each: pure functions and requests named after the tool's own verbs."""
