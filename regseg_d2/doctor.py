"""``python -m regseg_d2.doctor``: versions, what works on this machine, and the cure of what does not."""

import sys

from regseg_d2.apps.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
