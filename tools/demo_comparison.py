#!/usr/bin/env python3
"""Trains a baseline and ContrastSeg on the built-in data set, and compares them (minutes on two cores)."""

from __future__ import annotations

import argparse
from pathlib import Path

from regseg_d2.apps.demo import run_demo
from regseg_d2.common.errors import errors_end_the_program


def main() -> None:
    """Parses the arguments and runs the demo."""
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=root / "output" / "demo", help="(default: %(default)s)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change both configs")
    args = parser.parse_args()
    with errors_end_the_program(status=1):
        run_demo(root, args.output.resolve(), args.opts)


if __name__ == "__main__":
    main()
