"""Fusions: one feature of all features of the backbone, one a file."""
