"""Programs of ours that run inside a lab: each is a `main(words)`."""
