"""What a network has learnt, as numbers: gathered image after image, then compared between networks."""
