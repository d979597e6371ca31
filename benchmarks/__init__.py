"""What is measured beside others: time and memory of parts of this package; see ``tools/benchmark.py``."""
