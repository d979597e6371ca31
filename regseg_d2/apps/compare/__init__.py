"""Comparison of runs: their scores side by side, with intervals, and their predictions."""
