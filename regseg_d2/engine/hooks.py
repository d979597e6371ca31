"""What happens between steps: evaluation, best and periodic checkpoints, schedule, metrics file."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.files import refuse_folder, write_text
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.engine.devices import backbone_prefix
from regseg_d2.engine.initial_weights import timm_backbone
from regseg_d2.engine.interruption import EvaluationInterrupted

logger = logging.getLogger(__name__)

#: Name of the file of the best weights.
BEST_WEIGHTS = "model_best"
Results = dict[str, dict[str, dict[str, float]]]  # data set -> task -> metric -> score


class ScheduleHook(hooks.LRScheduler):
    """Steps the learning rate; on resume it is computed from the config and the iteration.

    torch's schedulers save their settings too, and would bring the old MAX_ITER or BASE_LR back where
    the new config has others.
    """

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps that were scheduled."""
        return {"last_epoch": self.scheduler.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Sets the learning rates to those of the saved number of steps."""
        scheduler = self.scheduler
        scheduler.last_epoch = int(state_dict["last_epoch"])
        for group, lr in zip(scheduler.optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = lr
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


class EvaluationHook(hooks.EvalHook):
    """Evaluates every ``period`` steps and at the end; keeps the best checkpoint; stops early.

    Every process has the same results, so that all of them decide alike. Best score and patience are
    in every checkpoint. A score that is NaN is never the best. An evaluation that a signal cuts short
    or keeps from beginning is made up for when the run is resumed.
    """

    def __init__(
        self, period: int, checkpointer: SafeCheckpointer, *, best_metric: str, patience: int = 0
    ) -> None:
        """Prepares evaluations by the trainer's ``evaluate``.

        Args:
            period: steps between evaluations; 0 evaluates at the end only.
            checkpointer: writes ``model_best.pth``, with the weights that ``best_metric`` is of.
            best_metric: ``task/metric`` whose largest value, on the first data set, is the best; ""
                keeps no best checkpoint.
            patience: evaluations in a row without a better score after which training stops; 0 never.
        """
        super().__init__(period, self._evaluate_and_judge)
        self._checkpointer = checkpointer
        self.best_metric = best_metric
        self.best_file = str(Path(checkpointer.save_dir) / f"{BEST_WEIGHTS}.pth")
        self._patience = patience
        self._last_evaluated = -1
        self._is_pending = False
        self.best_score: float | None = None
        self.best_iteration: int | None = None
        self.evaluations_without_gain = 0

    def before_train(self) -> None:
        """Stops at once where the run that is resumed had lost its patience; makes up for an evaluation."""
        self._stop_if_out_of_patience()
        if self._is_pending:
            self._do_eval()

    def after_step(self) -> None:
        """Evaluates where it is time to, unless the run is to end now."""
        if not self.trainer.interrupted:
            super().after_step()
        elif self._period > 0 and self.trainer.completed_steps % self._period == 0:
            # The last step's evaluation comes after training, however often that is resumed.
            self._is_pending = self.trainer.completed_steps != self.trainer.max_iter

    def after_train(self) -> None:
        """Evaluates at the end of training, unless its last step was evaluated already."""
        if self.trainer.finished and self._last_evaluated != self.trainer.completed_steps:
            self._do_eval()

    def _do_eval(self) -> None:
        self._is_pending = False
        try:
            super()._do_eval()
        except EvaluationInterrupted:
            self._is_pending = self.trainer.completed_steps != self.trainer.max_iter
            self.trainer.interrupted = True

    def _evaluate_and_judge(self) -> dict[str, float]:
        results: Results = self.trainer.evaluate()
        self._last_evaluated = self.trainer.completed_steps
        if self.best_metric:
            self._judge(next(iter(results.values())))
        shown = next(iter(results.values())) if len(results) == 1 else results
        # NaN (a class that is not in the ground truth) is no JSON and no point of a curve.
        return {k: v for k, v in flatten_results_dict(shown).items() if math.isfinite(v)}

    def _judge(self, results: Mapping[str, Mapping[str, float]]) -> None:
        scores = flatten_results_dict(results)
        if self.best_metric not in scores:
            raise ConfigError(
                f"TEST.BEST_METRIC is '{self.best_metric}', which is not measured."
                f"{did_you_mean(self.best_metric, scores)}"
            )
        score = float(scores[self.best_metric])
        is_better = not math.isnan(score) and (self.best_score is None or score > self.best_score)
        if is_better and self.trainer.training_step.is_healthy():
            self.best_score, self.best_iteration = score, self.trainer.completed_steps - 1
            self.evaluations_without_gain = 0
            logger.info("Best %s so far: %.4f.", self.best_metric, score)
            self._checkpointer.save(BEST_WEIGHTS, tag=False, iteration=self.best_iteration)
        else:
            self.evaluations_without_gain += 1
            best = "none yet" if self.best_score is None else f"{self.best_score:.4f}"
            logger.info("%s is %.4f; the best stays %s.", self.best_metric, score, best)
            self._stop_if_out_of_patience()

    def _stop_if_out_of_patience(self) -> None:
        if 0 < self._patience <= self.evaluations_without_gain:
            self.trainer.request_stop(
                f"no better {self.best_metric} in {self.evaluations_without_gain} evaluations (TEST.PATIENCE)"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns best score, its iteration, and the evaluations since."""
        return {
            "best_score": self.best_score,
            "best_iteration": self.best_iteration,
            "evaluations_without_gain": self.evaluations_without_gain,
            "is_pending": self._is_pending,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` gave."""
        score, iteration = state_dict["best_score"], state_dict["best_iteration"]
        self.best_score = None if score is None else float(score)
        self.best_iteration = None if iteration is None else int(iteration)
        self.evaluations_without_gain = int(state_dict["evaluations_without_gain"])
        self._is_pending = bool(state_dict.get("is_pending", False))


class CheckpointHook(HookBase):
    """Saves ``model_XXXXXXX.pth`` every ``period`` steps and on a signal, ``model_final.pth`` at the end.

    None is written, and none removed, while steps are being skipped or weights are not finite: the last
    good one stays the last. A run in the folder of another has its first checkpoint after its first
    step: from then on it is the one that is resumed.

    The final checkpoint is written before the last evaluation, which may fail, and again after it,
    with the best score. Old periodic checkpoints are found by their names, so that a resumed run
    clears away those of the run before.
    """

    def __init__(
        self,
        checkpointer: SafeCheckpointer,
        period: int,
        max_to_keep: int,
        average: SafeCheckpointer | None = None,
    ) -> None:
        """Prepares saving.

        Args:
            checkpointer: writes the files.
            period: steps between checkpoints; 0 writes the final one only.
            max_to_keep: periodic checkpoints to keep; 0 keeps all.
            average: writes the final averaged weights, where there are some.

        Raises:
            ConfigError: one alone shall be kept: then there is none to fall back to where it is damaged.
        """
        if max_to_keep == 1 or max_to_keep < 0:
            raise ConfigError(
                f"SOLVER.CHECKPOINT_MAX_TO_KEEP is {max_to_keep}; expected 2 or more, so that there is one "
                "to fall back to where the newest is damaged, or 0 to keep all."
            )
        self._checkpointer = checkpointer
        self._period = period
        self._max_to_keep = max_to_keep
        self._average = average

    def after_step(self) -> None:
        """Saves where it is time to."""
        iteration = self.trainer.iter
        is_last = iteration + 1 >= self.trainer.max_iter or self.trainer.stop_reason is not None
        is_due = self._period > 0 and (iteration + 1) % self._period == 0
        is_due = is_due or self._checkpointer.begins_history
        is_due = is_due or (self.trainer.interrupted and not is_last)
        step = self.trainer.training_step
        if is_due and step.is_healthy():
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            self._remove_old()
        elif is_due:
            logger.warning(
                "NO CHECKPOINT after step %d: the step was skipped, or weights are not finite. What was "
                "there stays.",
                iteration + 1,
            )
        if is_last and step.weights_are_finite():
            self._save_final(iteration)

    def after_train(self) -> None:
        """Saves the final checkpoint again, now with the last evaluation's verdict."""
        trainer = self.trainer
        is_done = trainer.finished and not trainer.interrupted and trainer.completed_steps > 0
        if is_done and trainer.training_step.weights_are_finite():
            self._save_final(trainer.completed_steps - 1)

    def _save_final(self, iteration: int) -> None:
        if self._average is not None:
            self._average.save("model_final", tag=False, iteration=iteration)
        self._checkpointer.save("model_final", iteration=iteration)

    def _remove_old(self) -> None:
        if self._max_to_keep <= 0 or not self._checkpointer.save_to_disk:
            return
        periodic = sorted(
            path
            for path in Path(self._checkpointer.save_dir).glob("model_*.pth")
            if re.fullmatch(r"model_\d{7,}\.pth", path.name) and _iteration_of(path) <= self.trainer.iter
        )
        for path in sorted(periodic, key=_iteration_of)[: -self._max_to_keep]:
            path.unlink()


def _iteration_of(path: Path) -> int:
    return int(path.stem.removeprefix("model_"))


class RandomBackboneWarning(HookBase):
    """Warns, when training begins and once more when it has ended, of a backbone that had random weights."""

    def __init__(self, checkpointer: SafeCheckpointer) -> None:
        self._checkpointer = checkpointer

    def before_train(self) -> None:
        """Warns that the backbone is random, where nothing was loaded into it."""
        self._warn("starts")

    def after_train(self) -> None:
        """Says so again beside the results."""
        if self.trainer.finished:
            self._warn("started")

    def _warn(self, starts: str) -> None:
        model = self._checkpointer.model
        tensors = sum(name.startswith(backbone_prefix(model)) for name in model.state_dict())
        if tensors and not self._checkpointer.backbone_is_loaded:
            key = "MODEL.WEIGHTS" if timm_backbone(model) is None else "MODEL.TIMM.PRETRAINED"
            cure = f"For those of ImageNet set {key}, to auto or a name in docs/weights.md."
            cure = getattr(model, "weights_hint", cure)
            logger.warning(
                "The backbone %s from RANDOM weights: none of its %d tensors was loaded. %s",
                starts,
                tensors,
                cure,
            )


def truncate_metrics(path: str | Path, start_iter: int) -> None:
    """Removes the lines of ``metrics.json`` that the coming steps will write again.

    Lines from ``start_iter`` on, and what a killed process or a full disk left unfinished or unreadable.
    """
    path = Path(path)
    refuse_folder(path)
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _is_before(line, start_iter)]
    if len(kept) != len(lines):
        logger.info(
            "Removed %d lines of '%s' that are written again or unfinished.", len(lines) - len(kept), path
        )
        write_text(path, "".join(kept))


def _is_before(line: str, start_iter: int) -> bool:
    if not line.endswith("\n"):
        return False  # unfinished
    try:
        return json.loads(line)["iteration"] < start_iter
    except (ValueError, TypeError, KeyError):
        return False  # bytes that a full disk or a power cut left
