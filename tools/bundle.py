#!/usr/bin/env python3
"""``regseg bundle`` as a script of a checkout, with the same arguments; see ``--help``."""

from regseg_d2.commands.bundle import main

if __name__ == "__main__":
    main()
