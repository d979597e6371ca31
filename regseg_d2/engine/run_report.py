"""What a run says of itself before its first step and after its last one."""

from __future__ import annotations

import logging
import math
import platform
import shlex
import time
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

import regseg_d2
from regseg_d2.engine.hooks import EvaluationHook
from regseg_d2.engine.trained_model import FINAL_WEIGHTS

logger = logging.getLogger(__name__)


def describe_environment() -> str:
    """Versions and device in one line; the whole table is in ``environment.txt``."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = {
        "regseg_d2": regseg_d2.__version__,
        "Detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    return f"{', '.join(' '.join(pair) for pair in versions.items())}, {device}"


class ClosingSummary(HookBase):
    """Says at the end of training what came out, where it is, and what to do next."""

    def before_train(self) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def after_train(self) -> None:
        """Logs the summary, if training came to its end."""
        trainer = self.trainer
        if trainer.finished and comm.is_main_process():
            seconds = int(time.monotonic() - self._started)
            logger.info("%s", "\n".join(summary(trainer, seconds)))


def summary(trainer: Any, seconds: int) -> list[str]:
    """The lines of a run's closing summary.

    Args:
        trainer: a ``Trainer`` that has finished.
        seconds: how long it trained.
    """
    cfg, folder = trainer.cfg, Path(trainer.cfg.OUTPUT_DIR)
    steps = trainer.completed_steps
    epochs = f" ({trainer.epochs(steps):.2f} epochs)" if trainer.epochs_per_step else ""
    minutes, rest = divmod(seconds, 60)
    took = f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
    skipped = trainer.training_step.skipped_steps
    lines = [
        f"Done: {steps} steps{epochs}, the last {steps - trainer.start_iter} in {took}, "
        f"{skipped} skipped; SEED {trainer.seed}.",
        f"  files     {folder}: {FINAL_WEIGHTS}, config.yaml, metrics.json, log.txt",
    ]
    lines += [f"  scores    {line}" for line in _scores(trainer)]
    commands = next_commands(cfg)
    return [*lines, *(f"  {what:<9} {command}" for what, command in commands.items())]


def _scores(trainer: Any) -> list[str]:
    lines = []
    for name, tasks in trainer.results.items():
        scores = flatten_results_dict(tasks)
        shown = [key for key in scores if key.endswith("/mIoU")]
        lines.append(f"{name}: " + ", ".join(f"{key} {scores[key]:.2f}" for key in shown))
    best: Any = next((hook for hook in trainer._hooks if isinstance(hook, EvaluationHook)), None)
    if best is not None and best.best_score is not None and not math.isnan(best.best_score):
        where = Path(best.best_file)
        lines.append(
            f"best {best.best_metric} {best.best_score:.2f} after step {best.best_iteration + 1}: {where}"
        )
    return lines


def next_commands(cfg: CfgNode) -> dict[str, str]:
    """Commands for a finished run, ready to be pasted where it was started."""
    folder, config = cfg.OUTPUT_DIR, str(Path(cfg.OUTPUT_DIR) / "config.yaml")
    weights = str(Path(folder) / FINAL_WEIGHTS)
    commands: dict[str, list[str]] = {}
    if cfg.DATASETS.TEST:
        evaluate = ["eval", "--config-file", config, "OUTPUT_DIR", folder, "MODEL.WEIGHTS", weights]
        commands |= {"evaluate": evaluate, "compare": ["compare", folder]}
        image = _first_image(cfg.DATASETS.TEST[0])
        if image.is_file():
            output = str(Path(folder) / "predictions")
            commands["predict"] = ["predict", "--model", folder, "--input", str(image), "--output", output]
    return {name: shlex.join(["regseg", *words]) for name, words in commands.items()}


def _first_image(dataset: str) -> Path:
    records = DatasetCatalog.get(dataset) if dataset in DatasetCatalog else []
    return Path(records[0].get("file_name", "")) if records else Path()
