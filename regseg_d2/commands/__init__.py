"""Command lines: argument parsing only. ``regseg`` and the scripts in ``tools/`` run them."""
