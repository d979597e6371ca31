"""Experiments: arms paired by seed, run to their end whatever happens, and a report from small records."""
