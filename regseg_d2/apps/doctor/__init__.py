"""What works on a machine, and the cure of what does not; the standard library alone is enough to start."""
