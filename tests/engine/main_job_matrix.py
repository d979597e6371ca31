"""The main job as users run it, on every kind of processes; ``python -m tests.engine.main_job_matrix``.

Trains, resumes and evaluates a small network on a few images from the command line: on one process, on two
that ``--num-gpus`` starts, on two that torchrun starts; without and with loader workers; in float32 and bf16.
"""

import itertools
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tabulate import tabulate

from tests.engine.runs import ROOT, TRAIN, finish, free_port, start

# Without dropout, whose draws are each process's own: else one process and two could not agree.
CONFIG = """
_BASE_: {root}/configs/_base_/models/deeplabv3_efficientnet_lite0_res4.yaml
DATASETS: {{DECLARED: [tiles.yaml], TRAIN: [tiles_train], TEST: [tiles_val]}}
MODEL:
  SEM_SEG_HEAD: {{NUM_CLASSES: 3, CONVS_DIM: 16, CONTEXT_CHANNELS: 16, DROPOUT: 0.0, ASPP_DROPOUT: 0.0}}
  REGULARIZERS: {{NAMES: [CAR, ContrastSeg]}}
INPUT: {{CROP: {{SIZE: [48, 48]}}, SCALE_RANGE: [0.75, 1.5]}}
SOLVER:
  {{MAX_ITER: 40, IMS_PER_BATCH: 4, BASE_LR: 0.02, WARMUP_ITERS: 4,
    CHECKPOINT_PERIOD: 20, CHECKPOINT_MAX_TO_KEEP: 0}}
TEST: {{NUM_IMAGES_SHOWN: 0}}
LOG_PERIOD: 1
SEED: 3
"""
DECLARATION = """
name: tiles
classes: [red, green, blue]
splits: {train: {images: train/images, labels: train/labels}, val: {images: val/images, labels: val/labels}}
"""
LAUNCHERS = ("1 process", "--num-gpus 2", "torchrun")
JOBS = ("train", "--resume", "--eval-only")


@dataclass(frozen=True)
class Setting:
    """How the job is started."""

    launcher: str
    workers: int
    precision: str

    @property
    def folder(self):
        return f"{self.launcher.strip('-').replace(' ', '_')}_{self.workers}_{self.precision}"


class Cell(NamedTuple):
    """One job of a setting: what came out of it, and the loss of the run's first step."""

    seconds: float
    metrics: dict
    weights: str
    first_loss: float


SETTINGS = tuple(itertools.starmap(Setting, itertools.product(LAUNCHERS, (0, 2), ("float32", "bf16"))))
# Half of them, in which every two of launcher, workers and precision meet.
PAIRWISE = tuple(
    setting
    for setting in SETTINGS
    if (setting.precision == "bf16") == ((setting.workers == 0) == (setting.launcher == "--num-gpus 2"))
)


def write_scene(folder):
    """A data set of coloured tiles, and the config of the job."""
    rng = np.random.default_rng(0)
    colors = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    for split, count in (("train", 12), ("val", 5)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            label = np.kron(
                rng.choice([0, 1, 2, 255], size=(4, 5), p=[0.3, 0.3, 0.3, 0.1]), np.ones((16, 16))
            )
            image = colors[np.minimum(label, 2).astype(int)] + rng.normal(0, 40, (*label.shape, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / split / "images" / f"{i}.png")
            Image.fromarray(label.astype(np.uint8)).save(folder / split / "labels" / f"{i}.png")
    (folder / "tiles.yaml").write_text(DECLARATION)
    (folder / "job.yaml").write_text(CONFIG.format(root=ROOT))
    return folder / "job.yaml"


def command(setting, config, output, *flags):
    """The command line of a job."""
    launch, words = [TRAIN], ["--config-file", config, *flags]
    if setting.launcher == "torchrun":
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port(), TRAIN]
    elif setting.launcher == "--num-gpus 2":
        words += ["--num-gpus", "2"]
    words += ["OUTPUT_DIR", output, "DATALOADER.NUM_WORKERS", setting.workers]
    return [*launch, *words, "SOLVER.AMP.ENABLED", setting.precision == "bf16"]


def run_setting(setting, config, folder, jobs=JOBS):
    """Runs the jobs of a setting; returns ``{job: Cell}``."""
    output, results = folder / setting.folder, {}
    for job in jobs:
        flags, words = [], []
        if job == "--resume":
            _go_back(output)
            flags = ["--resume"]
        if job == "--eval-only":
            flags, words = ["--eval-only"], ["MODEL.WEIGHTS", output / "model_final.pth"]
        began = time.monotonic()
        finish(start(*command(setting, config, output, *flags), *words))
        report = json.loads((output / "evaluation" / "tiles_val.json").read_text())
        seconds, weights = time.monotonic() - began, report["model"]["weights_sha256"]
        first = json.loads((output / "metrics.json").read_text().splitlines()[0])
        results[job] = Cell(seconds, report["metrics"], weights, first["total_loss"])
        shutil.rmtree(output / "evaluation")
    return results


def _go_back(output):
    """Makes the folder look as if the run had been killed after its first checkpoint."""
    assert (output / "model_0000019.pth").is_file()
    for name in ("model_final.pth", "model_0000039.pth", "model_best.pth"):
        (output / name).unlink(missing_ok=True)
    (output / "last_checkpoint").write_text("model_0000019.pth")


def differences(results):
    """What should be the same and is not, as sentences.

    Within a number of processes all is the same, to the last digit. One process and two add up in another
    order: their first losses agree to rounding, and what comes of rounding in 40 steps is some mIoU.

    Args:
        results: ``{setting: {job: Cell}}``.
    """
    found = []
    for setting, jobs in results.items():
        for job, cell in jobs.items():
            if cell[1:] != jobs["train"][1:]:
                found.append(f"{setting}: {job} differs from the end of training: {cell} and {jobs['train']}")
    trained = {setting: jobs["train"] for setting, jobs in results.items()}
    for a, b in itertools.combinations(trained, 2):
        if a.precision != b.precision:
            continue
        processes = [1 if s.launcher == "1 process" else 2 for s in (a, b)]
        if processes[0] == processes[1] and trained[a][1:] != trained[b][1:]:
            found.append(f"{a} and {b} differ")
        first, second = trained[a].first_loss, trained[b].first_loss
        if abs(first - second) > (1e-5 if a.precision == "float32" else 1e-2) * first:
            found.append(f"{a} and {b}: the first losses are {first} and {second}")
        gap = abs(trained[a].metrics["mIoU"] - trained[b].metrics["mIoU"])
        if gap > 10.0:
            found.append(f"{a} and {b}: mIoU differs by {gap:.2f}")
    return found


def main():
    """Prints the matrix; status 1 if two numbers differ that should not."""
    with tempfile.TemporaryDirectory() as folder:
        config = write_scene(Path(folder))
        results, rows = {}, []
        for setting in SETTINGS:
            results[setting] = run_setting(setting, config, Path(folder))
            rows.append([setting.launcher, setting.workers, setting.precision])
            for cell in results[setting].values():
                rows[-1] += [f"{cell.seconds:.1f} s", f"{cell.metrics['mIoU']:.4f}"]
            rows[-1].append(f"{results[setting]['train'].first_loss:.6f}")
            print(*rows[-1], flush=True)
        columns = [word for job in JOBS for word in (job, "mIoU")]
        print(
            tabulate(
                rows,
                headers=["processes", "workers", "precision", *columns, "first loss"],
                disable_numparse=True,
            )
        )
        found = differences(results)
        print("\n".join(found) or "All cells that should be the same are the same.")
        sys.exit(bool(found))


if __name__ == "__main__":
    main()
