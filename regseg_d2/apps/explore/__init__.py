"""What networks have learnt, in figures and on one page."""
