#!/usr/bin/env python3
"""``regseg export`` as a script of a checkout, with the same arguments; see ``--help``."""

from regseg_d2.commands.export import main

if __name__ == "__main__":
    main()
