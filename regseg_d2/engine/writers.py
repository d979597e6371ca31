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

from regseg_d2.common.errors import check_key
from regseg_d2.common.files import refuse_folder, write_text
from regseg_d2.common.suggestions import registered
from regseg_d2.engine.trackers import MlflowWriter, WandbWriter, require_package

logger = logging.getLogger(__name__)

WRITER = Registry("WRITER")
WRITER.__doc__ = """
Functions of a config, the first step and the number of steps that return one of Detectron2's ``EventWriter``.
They are called when training begins.
"""
# What writers need beside what this package does.
_PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def build_writers(cfg: CfgNode, start_iter: int, max_iter: int) -> list[EventWriter]:
    """Builds the writers of a training; ``metrics.json`` is always written, since the tools read it.

    Raises:
        ConfigError: see :func:`require_writers`.
    """
    names = dict.fromkeys([*cfg.WRITERS, metrics_json.__name__])
    return [registered(WRITER, name, "WRITERS")(cfg, start_iter, max_iter) for name in names]


def require_writers(cfg: CfgNode) -> None:
    """Refuses writers that cannot be built.

    Raises:
        ConfigError: a name in ``WRITERS`` is unknown, its package is not installed, or they never write.
    """
    check_key("LOG_PERIOD", cfg.LOG_PERIOD, cfg.LOG_PERIOD >= 1, "1 or more")
    for name in cfg.WRITERS:
        registered(WRITER, name, "WRITERS")
        require_package(name, _PACKAGES.get(name, ()))


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


@WRITER.register()
def csv(cfg: CfgNode, start_iter: int, max_iter: int) -> EventWriter:
    """A row for each number in ``metrics.csv``: iteration, name, value."""
    return CSVWriter(Path(cfg.OUTPUT_DIR) / "metrics.csv", start_iter)


@WRITER.register()
def wandb(cfg: CfgNode, start_iter: int, max_iter: int) -> EventWriter:
    """Weights & Biases."""
    return WandbWriter(cfg, start_iter, "wandb")


@WRITER.register()
def mlflow(cfg: CfgNode, start_iter: int, max_iter: int) -> EventWriter:
    """MLflow."""
    return MlflowWriter(cfg, start_iter, "mlflow")


class CSVWriter(EventWriter):
    """Writes a table with a row for each number: names differ from step to step, columns would, too.

    Args:
        path: the file. Of one that is there, rows before ``start_iter`` stay.
        start_iter: the first step.
    """

    def __init__(self, path: Path, start_iter: int) -> None:
        refuse_folder(path)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:] if path.is_file() else []
        kept = [line for line in lines if _is_row_before(line, start_iter)]
        write_text(path, "".join(["iteration,name,value\n", *kept]))
        self._file = path.open("a", encoding="utf-8")
        self._last_write = -1

    def write(self) -> None:
        """Writes what the storage has of iterations that are not in the file."""
        latest = get_event_storage().latest()
        rows = sorted(
            (step, name, value) for name, (value, step) in latest.items() if step > self._last_write
        )
        self._file.writelines(f"{step},{name},{value!r}\n" for step, name, value in rows)
        self._file.flush()
        self._last_write = max((step for step, _, _ in rows), default=self._last_write)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _is_row_before(line: str, start_iter: int) -> bool:
    number = line.partition(",")[0]
    return line.endswith("\n") and line.count(",") == 2 and number.isdecimal() and int(number) < start_iter


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
