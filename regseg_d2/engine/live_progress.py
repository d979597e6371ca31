"""A bar of progress that moves, on terminals."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TextIO

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from regseg_d2.common.outputs import let_go_of_lost_outputs

SECONDS = 0.25  # between two pictures


def shows_progress(stream: TextIO) -> bool:
    """Whether a stream is a terminal that somebody looks at: no file, no pipe, no CI, and not a dumb one."""
    return stream.isatty() and "CI" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"


class LiveProgress(HookBase):
    """Two lines below the log: how far training is, and how it does.

    The log's lines go above them. Nothing happens in the background: a picture is made after a step, and not
    while the network is evaluated.

    Args:
        stream: the terminal.
        score: name of the score that is shown, such as "sem_seg/mIoU".
    """

    def __init__(self, stream: TextIO, score: str) -> None:
        self._stream, self._score = stream, score
        self._progress: _TwoLines | None = None
        self._handlers: list[logging.StreamHandler[TextIO]] = []
        self._shown = 0.0

    def before_train(self) -> None:
        """Shows the first picture, and lets the log write above it."""
        trainer = self.trainer
        console = Console(file=self._stream, force_terminal=True)
        self._progress = _TwoLines(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:.0f}%"),
            TextColumn("{task.fields[eta]}"),
            console=console,
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task(
            "", total=trainer.max_iter, completed=trainer.start_iter, eta="eta -:--:--"
        )
        self._progress.start()
        loggers = [logging.getLogger(), *map(logging.getLogger, ("fvcore", "detectron2", "regseg_d2"))]
        for handler in {handler for each in loggers for handler in each.handlers}:
            if isinstance(handler, logging.StreamHandler) and handler.stream is self._stream:
                handler.setStream(sys.stdout)  # rich's, now
                self._handlers.append(handler)

    def after_step(self) -> None:
        """Shows a picture, unless the last one is young."""
        now = time.monotonic()
        trainer = self.trainer
        is_last = trainer.completed_steps == trainer.max_iter
        if self._progress is None or now - self._shown < SECONDS and not is_last:
            return
        self._shown = now
        let_go_of_lost_outputs()  # a terminal that was closed
        self._progress.line = self._line()
        self._progress.update(self._task, completed=trainer.completed_steps, eta=self._eta())
        self._progress.refresh()

    def after_train(self) -> None:
        """Takes the bar away, whatever ended the training."""
        if self._progress is None:
            return
        let_go_of_lost_outputs()
        self._progress.stop()
        self._progress = None
        for handler in self._handlers:
            handler.setStream(self._stream)
        self._handlers = []

    def _eta(self) -> str:
        history = self.trainer.storage.histories().get("time")
        if history is None:
            return "eta -:--:--"
        seconds = history.median(1000) * (self.trainer.max_iter - self.trainer.completed_steps)
        return f"eta {timedelta(seconds=int(seconds))}"

    def _line(self) -> str:
        trainer = self.trainer
        latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
        parts = []
        if trainer.epochs_per_step:
            done, all_of_them = (
                trainer.epochs(steps) for steps in (trainer.completed_steps, trainer.max_iter)
            )
            parts.append(f"epoch {done:.1f}/{all_of_them:.1f}")
        forms = {"total_loss": "loss {:.4g}", "lr": "lr {:.2e}", "data_time": "data {:.3f} s"}
        parts += [form.format(latest[name]) for name, form in forms.items() if name in latest]
        scores = flatten_results_dict(next(iter(trainer.results.values()), {}))
        if self._score in scores:
            parts.append(f"{self._score.rpartition('/')[2]} {scores[self._score]:.2f}")
        return "  ".join(parts)


class _TwoLines(Progress):
    """A bar, and a line of text below it."""

    line = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.line, no_wrap=True, overflow="ellipsis")
