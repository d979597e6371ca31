"""A reader that goes wrong on purpose; it imports nothing that takes time."""

import os


def crash(path):
    """Does what the first letter of the file says."""
    action = path.read_text()
    if action == "die":
        os.abort()
    elif action == "loop":
        while True:
            pass
    elif action == "memory":
        bytearray(2 << 30)
    raise KeyError("x")
