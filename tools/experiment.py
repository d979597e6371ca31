#!/usr/bin/env python3
"""Trains the arms of an experiment over several seeds and reports what differs; see docs/experiments.md.

Example:
    tools/experiment.py experiments/cooccurrence.yaml --jobs 2
"""

from regseg_d2.apps.experiment.__main__ import main

if __name__ == "__main__":
    main()
