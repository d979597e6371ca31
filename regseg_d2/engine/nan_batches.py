"""Keeps the batches of steps that were not finite, to be looked at."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor

from regseg_d2.common.errors import WriteError
from regseg_d2.common.files import atomic_writer

logger = logging.getLogger(__name__)

_PLAIN_TYPES = (Tensor, str, int, float, bool, type(None))


class NanBatchDumper:
    """Writes ``<iteration>_rank<r>.pth`` of a step whose losses or gradients were not finite.

    A file holds ``passes``, for each forward pass its ``samples`` (image, label, file names) and its
    ``losses``, and what :func:`describe_step` gives. ``torch.load`` reads it without running code.
    """

    def __init__(self, folder: str | Path, max_dumps: int, describe: Callable[[], Mapping[str, Any]]) -> None:
        """Prepares; the folder is made with the first file.

        Args:
            folder: where the files go.
            max_dumps: files of one process that the folder may hold; 0 writes none.
            describe: gives ``iteration`` and ``rank`` of the step, and more to write, of plain types.
        """
        self.folder = Path(folder)
        self.max_dumps = max_dumps
        self._describe = describe

    def __call__(
        self, batches: Sequence[list[dict[str, Any]]], losses: Sequence[Mapping[str, Tensor]], any_loss: bool
    ) -> None:
        """Writes the batches of a step, unless it was another process whose losses were not finite.

        Args:
            batches: those of this process, one a forward pass.
            losses: those of each of the passes.
            any_loss: whether a loss of any process is not finite; else it is the gradients alone, of
                which nobody knows whose they were, and every process writes.
        """
        values = [{name: float(loss) for name, loss in one.items()} for one in losses]
        mine = any(not math.isfinite(value) for one in values for value in one.values())
        if any_loss and not mine:
            return
        facts = dict(self._describe())
        ending = f"_rank{facts['rank']}.pth"
        path = self.folder / f"{facts['iteration']:07d}{ending}"
        if not path.exists() and len(list(self.folder.glob(f"*{ending}"))) >= self.max_dumps:
            return
        content = {
            **facts,
            "not_finite": "losses" if any_loss else "gradients",
            "passes": [
                {"samples": [_plain(sample) for sample in batch], "losses": one}
                for batch, one in zip(batches, values, strict=True)
            ],
        }
        try:
            with atomic_writer(path, "wb") as file:
                torch.save(content, file)
        except (OSError, WriteError) as error:
            # The run itself may go on: a skipped step changes nothing.
            logger.warning("The batch of this step could not be kept: %s", error)
            return
        names = [sample.get("file_name", "?") for batch in batches for sample in batch]
        logger.warning(
            "Kept the batch of this step in '%s' (%s). Look at it with: "
            "torch.load('%s')['passes'][0]['samples'][0]",
            path,
            ", ".join(map(str, names)),
            path,
        )


def describe_step(trainer: Any) -> dict[str, Any]:
    """Returns what is written about the step that a trainer is in."""
    amp = trainer.cfg.SOLVER.AMP
    return {
        "iteration": trainer.iter,
        "rank": comm.get_rank(),
        "world_size": comm.get_world_size(),
        "seed": trainer.seed,
        "random_numbers": "engine.seeding.seed_pass(seed, iteration, number of the pass, rank)",
        "learning_rates": [float(group["lr"]) for group in trainer.optimizer.param_groups],
        "amp": amp.DTYPE if amp.ENABLED else "off",
    }


def _plain(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a sample that a file can hold without code."""
    return {
        key: value.detach().cpu().clone() if isinstance(value, Tensor) else value
        for key, value in sample.items()
        if isinstance(value, _PLAIN_TYPES)
    }
