#!/usr/bin/env python3
"""Trains or evaluates a segmentor: ``train_net.py --config-file FILE [--eval-only] [KEY VALUE ...]``."""

import gc

# Importing torch and Detectron2 makes very many objects and no garbage: looking for it takes half a second.
gc.disable()

import regseg_d2.segmentor  # noqa: E402, F401
from regseg_d2.engine.launch import build_argument_parser, run  # noqa: E402
from regseg_d2.engine.main import main  # noqa: E402

# What is there now stays: later collections need not look at it.
gc.freeze()
gc.enable()

if __name__ == "__main__":
    run(main, build_argument_parser().parse_args())
