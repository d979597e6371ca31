#!/usr/bin/env python
"""Measures what the parts of this package cost; prints ratios from one interleaved run.

Example:
    tools/benchmark.py regularizers --rounds 9
    tools/benchmark.py loss
    tools/benchmark.py inference
    tools/benchmark.py evaluation
    tools/benchmark.py steps --device cuda
    tools/benchmark.py compile
    tools/benchmark.py huggingface
    tools/benchmark.py networks --mmsegmentation FOLDER
    tools/benchmark.py data --mmsegmentation FOLDER
    tools/benchmark.py explore --images 100
    tools/benchmark.py export --only swin
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from regseg_d2.common.errors import errors_end_the_program

ROOT = Path(__file__).resolve().parents[1]
# The benchmarks are beside the package, not in it.
sys.path.insert(0, str(ROOT))

import benchmarks.compiled  # noqa: E402
import benchmarks.data  # noqa: E402
import benchmarks.evaluation  # noqa: E402
import benchmarks.export  # noqa: E402
import benchmarks.huggingface  # noqa: E402
import benchmarks.inference  # noqa: E402
import benchmarks.large_steps  # noqa: E402
import benchmarks.looking  # noqa: E402
import benchmarks.networks  # noqa: E402
import benchmarks.pixel_loss  # noqa: E402
import benchmarks.regularizers  # noqa: E402

MODELS = ROOT / "configs" / "_base_" / "models"


def main() -> None:
    """Parses the arguments and runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    regularizers = commands.add_parser("regularizers", help="training steps without and with regularizers")
    regularizers.add_argument("--only-losses", action="store_true", help="leave the training steps out")
    pixel_loss = commands.add_parser("loss", help="the pixel loss beside plain upsampling and cross entropy")
    inference = commands.add_parser("inference", help="labels of images beside the plain way, and memory")
    steps = commands.add_parser(
        "steps", help="steps of DeepLabV3-R101 at 8 x 512 x 1024, with each regularizer"
    )
    steps.add_argument("--batch", type=int, default=8, help="images a step (default: %(default)s)")
    steps.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    steps.add_argument(
        "--model", type=Path, default=MODELS / "deeplabv3_resnet101_os8.yaml", help="(default: %(default)s)"
    )
    compiled = commands.add_parser("compile", help="compiled steps (SOLVER.COMPILE) beside eager ones")
    compiled.add_argument("--batch", type=int, default=2, help="images a step (default: %(default)s)")
    compiled.add_argument("--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"))
    compiled.add_argument(
        "--model",
        type=Path,
        default=MODELS / "deeplabv3_efficientnet_lite0.yaml",
        help="(default: %(default)s)",
    )
    compiled.add_argument("--backend", default="inductor", help="(default: %(default)s)")
    huggingface = commands.add_parser(
        "huggingface", help="steps of networks of transformers here beside a plain loop"
    )
    huggingface.add_argument("--batch", type=int, default=2, help="images a step (default: %(default)s)")
    huggingface.add_argument(
        "--size", type=int, default=256, help="side of the images (default: %(default)s)"
    )
    for command in (regularizers, pixel_loss, inference, steps, compiled, huggingface):
        command.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
        command.add_argument(
            "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
        )
    evaluation = commands.add_parser("evaluation", help="evaluating an image beside Detectron2's evaluator")
    evaluation.add_argument("--rounds", type=int, default=9, help="timed rounds (default: %(default)s)")
    networks = commands.add_parser("networks", help="training steps beside mmsegmentation's, on a CPU")
    networks.add_argument(
        "--mmsegmentation",
        default="",
        metavar="FOLDER",
        help="where pip install --target put mmsegmentation; without it, this environment has it",
    )
    networks.add_argument(
        "--networks", nargs="+", default=list(benchmarks.networks.NAMES), metavar="NAME", help="which of them"
    )
    networks.add_argument(
        "--curve", type=int, default=0, metavar="STEPS", help="also train so many steps and show the losses"
    )
    networks.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    data = commands.add_parser("data", help="training samples beside the pipelines of others, on one core")
    data.add_argument(
        "--mmsegmentation",
        default="",
        metavar="FOLDER",
        help="where pip install --target put mmsegmentation; without it, it is left out if not installed",
    )
    data.add_argument("--rounds", type=int, default=30, help="timed samples (default: %(default)s)")
    explore = commands.add_parser("explore", help="looking at a network: time and memory for an image")
    case = benchmarks.looking.LookingCase()
    explore.add_argument("--classes", type=int, default=case.num_classes, help="(default: %(default)s)")
    explore.add_argument("--size", type=int, nargs=2, default=case.size, metavar=("H", "W"))
    explore.add_argument(
        "--channels", type=int, default=case.channels, help="of the feature (default: %(default)s)"
    )
    explore.add_argument(
        "--images", type=int, default=case.images, help="then four times as many (default: %(default)s)"
    )
    export = commands.add_parser("export", help="networks in each format of tools/export.py, beside torch")
    export.add_argument(
        "--only", nargs="+", default=(), metavar="WORD", help="networks with it in their names"
    )
    export.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    args = parser.parse_args()
    for name in ("rounds", "classes", "channels", "images"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; expected 1 or more")
    with errors_end_the_program():
        run(args)


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark that the arguments name."""
    if args.command == "loss":
        benchmarks.pixel_loss.run(args.rounds, args.device)
    elif args.command == "steps":
        print(benchmarks.large_steps.run(args.model, args.batch, tuple(args.size), args.rounds, args.device))
    elif args.command == "compile":
        size = tuple(args.size)
        print(benchmarks.compiled.run(args.model, args.batch, size, args.rounds, args.device, args.backend))
    elif args.command == "huggingface":
        benchmarks.huggingface.run(args.batch, args.size, args.rounds, args.device)
    elif args.command == "inference":
        benchmarks.inference.run(args.rounds, args.device)
    elif args.command == "data":
        benchmarks.data.run(args.rounds, args.mmsegmentation)
    elif args.command == "evaluation":
        benchmarks.evaluation.run(args.rounds)
    elif args.command == "export":
        benchmarks.export.run(args.rounds, args.only)
    elif args.command == "explore":
        case = benchmarks.looking.LookingCase(args.classes, tuple(args.size), args.channels, args.images)
        benchmarks.looking.run(case)
    elif args.command == "networks":
        benchmarks.networks.run(args.mmsegmentation, MODELS, args.networks, args.rounds, args.curve)
    else:
        benchmarks.regularizers.run(args.rounds, args.device, args.only_losses)


if __name__ == "__main__":
    main()
