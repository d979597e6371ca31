#!/usr/bin/env python3
"""``regseg install-detectron2`` as a script of a checkout, with the same arguments; see ``--help``."""

import sys
from pathlib import Path

# It may be the first thing that runs.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from regseg_d2.installation.install_detectron2 import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
