"""Published checkpoints, under the names of this package."""
