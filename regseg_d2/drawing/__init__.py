"""Colours of classes, and pictures of labels."""
