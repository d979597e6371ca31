#!/usr/bin/env python3
"""Trains or evaluates a segmentor: ``train_net.py --config-file FILE [--eval-only] [KEY VALUE ...]``."""

from regseg_d2.engine.launch import build_argument_parser, run
from regseg_d2.engine.main import main

if __name__ == "__main__":
    run(main, build_argument_parser().parse_args())
