"""Installs what pip cannot. Standard library only: this runs before anything else is there."""
