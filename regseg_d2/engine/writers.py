"""What prints and writes the measurements of a training, by the names in ``WRITERS``."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.registry import Registry

from regseg_d2.common.suggestions import registered

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
    """A line of progress."""
    return CommonMetricPrinter(max_iter)


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
