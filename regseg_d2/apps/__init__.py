"""What the command lines in ``tools/`` do: one room each."""
