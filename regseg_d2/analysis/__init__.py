"""What can be learned from finished runs."""
