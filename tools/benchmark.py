#!/usr/bin/env python
"""Measures what the parts of this package cost; prints ratios from one interleaved run.

Example:
    tools/benchmark.py regularizers --rounds 9
    tools/benchmark.py loss
"""

from __future__ import annotations

import argparse

import torch

from regseg_d2.analysis import benchmark_pixel_loss, benchmark_regularizers


def main() -> None:
    """Parses the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    regularizers = commands.add_parser("regularizers", help="training steps without and with regularizers")
    regularizers.add_argument("--only-losses", action="store_true", help="leave the training steps out")
    pixel_loss = commands.add_parser("loss", help="the pixel loss beside plain upsampling and cross entropy")
    for command in (regularizers, pixel_loss):
        command.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
        command.add_argument(
            "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
        )
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; expected 1 or more")
    if args.command == "loss":
        benchmark_pixel_loss.run(args.rounds, args.device)
    else:
        benchmark_regularizers.run(args.rounds, args.device, args.only_losses)


if __name__ == "__main__":
    main()
