"""Augments: stages behind the context that stay at inference, one a file."""
