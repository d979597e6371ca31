"""Context modules: ``x -> (features, side outputs)``, one a file."""
