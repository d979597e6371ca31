"""The main job in small: a baseline and the same network with ContrastSeg, trained side by side, compared."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from regseg_d2.common.errors import UserError
from regseg_d2.common.yaml_files import read_yaml

CONFIGS = {
    "baseline": "configs/cooccurrence/deeplabv3_efficientnet_lite0_res4.yaml",
    "ContrastSeg": "configs/cooccurrence/deeplabv3_efficientnet_lite0_res4_contrast_seg.yaml",
}
SCHEDULE = "configs/_base_/schedules/cooccurrence_1600.yaml"
# What the same two arms gave over many seeds.
EXPERIMENT, ARM = "experiments/cooccurrence", "contrast_seg"


class TrainingFailed(UserError):
    """A training of the demo ended with an error."""


@dataclass
class Training:
    """A training in a process of its own."""

    name: str
    folder: Path
    process: BaseProcess
    log: Path

    def completed_steps(self) -> int:
        """Steps that are in its metrics file."""
        metrics = self.folder / "metrics.json"
        if not metrics.is_file():
            return 0
        lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return json.loads(lines[-1])["iteration"] + 1 if lines else 0

    def raise_if_failed(self) -> None:
        """Raises TrainingFailed, with the end of the log, if the process ended with an error."""
        if self.process.exitcode:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise TrainingFailed(
                f"the training of {self.name} ended with exit code {self.process.exitcode}; the end of "
                f"{self.log}:\n{tail}"
            )


def run_demo(root: Path, output: Path, overrides: list[str]) -> None:
    """Trains both networks, prints the comparison and writes pictures.

    What an earlier demo left in the folder is replaced.

    Raises:
        TrainingFailed: if a training ends with an error.
    """
    for name in CONFIGS:
        shutil.rmtree(output / name, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    threads = limit_threads()
    print(
        f"Training {' and '.join(CONFIGS)} at the same time, {threads} thread(s) each. One step is a batch "
        "of images in which each kind of object almost always stands on its own ground; 'swapped' shows "
        "them where they never stood in training.",
        flush=True,
    )
    import_training()
    trainings = [start(root, name, output / name, overrides) for name in CONFIGS]
    try:
        watch(trainings, read_max_iter(root, overrides))
    finally:
        for training in trainings:
            training.process.terminate()
            training.process.join()
    report(root, output)


def limit_threads() -> int:
    """Gives each training its share of the cores; has to come before torch is imported."""
    threads = max(1, len(os.sched_getaffinity(0)) // len(CONFIGS))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    return int(os.environ["OMP_NUM_THREADS"])


def import_training() -> None:
    """Imports what a training needs, once for all trainings that are forked from this process."""
    # Looking for GPUs through CUDA itself would leave the forked trainings without it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # Importing torch and Detectron2 makes very many objects and no garbage to look for.
    gc.disable()
    import regseg_d2.data
    import regseg_d2.engine.main
    import regseg_d2.segmentor  # noqa: F401

    # What is there now stays: collections in the trainings need not look at it, nor copy its pages.
    gc.freeze()
    gc.enable()


def start(root: Path, name: str, folder: Path, overrides: list[str]) -> Training:
    """Starts what ``tools/train_net.py`` does, on one of the configs."""
    log = folder.with_suffix(".log")
    arguments = ["--config-file", str(root / CONFIGS[name]), *overrides, "OUTPUT_DIR", str(folder)]
    process = multiprocessing.get_context("fork").Process(target=_train, args=(arguments, log))
    process.start()
    print(f"  tools/train_net.py {' '.join(arguments)} > {log}", flush=True)
    return Training(name, folder, process, log)


def _train(arguments: list[str], log: Path) -> None:
    from regseg_d2.engine.launch import build_argument_parser, run
    from regseg_d2.engine.main import main

    # File descriptors, not sys.stdout alone: loader workers and libraries write to them too.
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    run(main, build_argument_parser().parse_args(arguments))


def read_max_iter(root: Path, overrides: list[str]) -> int:
    """Length of the schedule, for the progress bars."""
    if "SOLVER.MAX_ITER" in overrides:
        return int(overrides[overrides.index("SOLVER.MAX_ITER") + 1])
    return read_yaml(root / SCHEDULE)["SOLVER"]["MAX_ITER"]


def watch(trainings: list[Training], max_iter: int) -> None:
    """Shows progress until all trainings have ended.

    Raises:
        TrainingFailed: as soon as one of them fails.
    """
    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps, time left"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns) as progress:
        tasks = [progress.add_task(training.name, total=max_iter) for training in trainings]
        while any(training.process.is_alive() for training in trainings):
            for training, task in zip(trainings, tasks, strict=True):
                training.raise_if_failed()
                # The row of the last evaluation stands one step behind the last.
                progress.update(task, completed=min(training.completed_steps(), max_iter))
            time.sleep(0.5)
        for training, task in zip(trainings, tasks, strict=True):
            training.raise_if_failed()
            progress.update(task, completed=max_iter)
    print(f"Trained and evaluated in {time.monotonic() - began:.0f} s.\n", flush=True)


def report(root: Path, output: Path) -> None:
    """Prints the comparison of the runs and what more seeds gave; writes pictures."""
    from regseg_d2.apps.compare.groups import compare_groups, group_runs
    from regseg_d2.apps.compare.pictures import compare_predictions
    from regseg_d2.apps.compare.report import render
    from regseg_d2.apps.compare.runs import load_run
    from regseg_d2.apps.experiment.summary import summarize

    folders = [output / name for name in CONFIGS]
    groups, notes = group_runs([load_run(folder) for folder in folders])
    table = render(groups, compare_groups(groups), notes)
    print(table)
    (output / "comparison.txt").write_text(table)
    pictures = output / "side_by_side.png"
    compare_predictions(dict(zip(CONFIGS, folders, strict=True)), "cooccurrence_swapped", pictures)
    print(f"Tables: {output / 'comparison.txt'}")
    print(f"Pictures (image, label, {', '.join(CONFIGS)}): {pictures}")
    print(f"\nOne run of each says little. {summarize(root / EXPERIMENT, ARM)}")
