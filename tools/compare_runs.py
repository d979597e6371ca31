#!/usr/bin/env python3
"""``regseg compare`` as a script of a checkout, with the same arguments; see ``--help``."""

from regseg_d2.commands.compare import main

if __name__ == "__main__":
    main()
