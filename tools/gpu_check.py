#!/usr/bin/env python3
"""Runs all that needs a GPU in at most nine minutes: tests, benchmarks, full-size steps, trainings.

Example:
    DETECTRON2_DATASETS=/path/to/datasets tools/gpu_check.py --output output/gpu_check
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from regseg_d2.apps.gpu_check import run


def main() -> None:
    """Runs the check; its status is the number of parts that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/gpu_check"), help="(default: %(default)s)"
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("Error: torch finds no GPU, and this is a check of one.", file=sys.stderr)
        sys.exit(2)
    sys.exit(run(args.output))


if __name__ == "__main__":
    main()
