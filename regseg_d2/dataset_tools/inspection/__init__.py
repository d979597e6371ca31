"""A look at a data set before training: what is wrong with it, what is in it, and what the network sees."""
