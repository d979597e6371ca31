"""The hooks of a training in their order."""

from __future__ import annotations

import sys
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm
from torch.optim.lr_scheduler import LRScheduler

from regseg_d2.common.errors import check_key
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.final_pictures import FinalPictures
from regseg_d2.engine.hooks import CheckpointHook, EvaluationHook, RandomBackboneWarning, ScheduleHook
from regseg_d2.engine.live_progress import LiveProgress, shows_progress
from regseg_d2.engine.run_report import ClosingSummary
from regseg_d2.engine.weight_average import FOLDER as AVERAGE
from regseg_d2.engine.weight_average import WeightAverage


def build_hooks(
    cfg: CfgNode,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    checkpointer: SafeCheckpointer,
    average: WeightAverage | None,
) -> list[Any]:
    """Returns what happens around steps: evaluation before checkpoints, so that these know the best score.

    Args:
        cfg: the config.
        optimizer: the optimizer.
        scheduler: its schedule.
        checkpointer: writes the weights that are trained.
        average: their average, where SOLVER.EMA asks for one.

    Raises:
        ConfigError: a key cannot be used.
    """
    result: list[Any] = [hooks.IterationTimer(), ScheduleHook(optimizer, scheduler)]
    if "terminal" in cfg.WRITERS and comm.is_main_process() and shows_progress(sys.stdout):
        result.append(LiveProgress(sys.stdout, cfg.TEST.BEST_METRIC or "sem_seg/mIoU"))
    of_average = None
    if average is not None:
        result.append(average)
        of_average = average.checkpointer
    if cfg.DATASETS.TEST:
        is_of_average = cfg.TEST.BEST_METRIC.startswith(f"{AVERAGE}/")
        is_measured = of_average is not None or not is_of_average
        expected = "a metric of the weights, or SOLVER.EMA.ENABLED True"
        check_key("TEST.BEST_METRIC", cfg.TEST.BEST_METRIC, is_measured, expected)
        result.append(
            EvaluationHook(
                cfg.TEST.EVAL_PERIOD,
                of_average if of_average and is_of_average else checkpointer,
                best_metric=cfg.TEST.BEST_METRIC,
                patience=cfg.TEST.PATIENCE,
            )
        )
        if "tensorboard" in cfg.WRITERS:
            result.append(FinalPictures(cfg))
    if comm.is_main_process():
        when = (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.CHECKPOINT_MAX_TO_KEEP)
        result.append(CheckpointHook(checkpointer, *when, of_average))
    return [*result, ClosingSummary(), RandomBackboneWarning(checkpointer)]
