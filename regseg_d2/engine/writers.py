"""What prints and writes the measurements of a training, by the names in ``WRITERS``."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from detectron2.utils.registry import Registry

from regseg_d2.common.suggestions import registered

logger = logging.getLogger(__name__)

WRITER = Registry("WRITER")
WRITER.__doc__ = """
Functions of a config, the first step and the number of steps that return one of Detectron2's ``EventWriter``.
They are called when training begins.
"""


def build_writers(cfg: CfgNode, start_iter: int, max_iter: int) -> list[EventWriter]:
    """Builds the writers of a training.

    Raises:
        ConfigError: a name in ``WRITERS`` is unknown.
    """
    return [registered(WRITER, name, "WRITERS")(cfg, start_iter, max_iter) for name in cfg.WRITERS]


@WRITER.register()
def terminal(cfg: CfgNode, start_iter: int, max_iter: int) -> EventWriter:
    """A line of progress in the log."""
    return LogPrinter(max_iter)


@WRITER.register()
def metrics_json(cfg: CfgNode, start_iter: int, max_iter: int) -> EventWriter:
    """A line of JSON in ``metrics.json``, which ``tools/compare_runs.py`` and experiments read.

    With each step's own values: a median over the steps before would be another one after a resume.
    """
    return JSONWriter(str(Path(cfg.OUTPUT_DIR) / "metrics.json"), window_size=1)


@WRITER.register()
def tensorboard(cfg: CfgNode, start_iter: int, max_iter: int) -> EventWriter:
    """Files for TensorBoard, which hides what a killed run recorded after the step that is resumed from."""
    return TensorboardXWriter(cfg.OUTPUT_DIR, purge_step=start_iter or None)


class LogPrinter(CommonMetricPrinter):
    """A line of progress: iteration, epoch, losses (medians over 20 steps), times, learning rate, memory."""

    def write(self) -> None:
        """Logs what the storage has of the current iteration."""
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # after training
        parts = [f"eta: {eta}"] if (eta := self._get_eta(storage)) else []
        parts.append(f"iter: {storage.iter}")
        latest = storage.latest()
        if "epoch" in latest:
            parts.append(f"epoch: {latest['epoch'][0]:.2f}")
        losses = [name for name in storage.histories() if name == "total_loss" or name.startswith("loss_")]
        parts += [f"{name}: {self._smoothed(storage, name):.4g}" for name in losses]
        parts += [f"{name}: {latest[name][0]:.4f}" for name in ("time", "data_time") if name in latest]
        parts += [f"lr: {latest['lr'][0]:.5g}"] if "lr" in latest else []
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        logger.info("  ".join(parts))

    def _smoothed(self, storage: EventStorage, name: str) -> float:
        return storage.history(name).median(storage.count_samples(name, self._window_size))
