"""Checkpoints: loaded without running their code, written whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from regseg_d2.common.errors import CheckpointError
from regseg_d2.common.files import atomic_writer, remove_partial_files, require_room
from regseg_d2.data.main_process import from_main_process
from regseg_d2.engine.checkpoint_history import (
    TAG_FILE,
    announce_checkpoint,
    holds_checkpoints,
    newest_whole_checkpoint,
    tag_checkpoint,
)
from regseg_d2.engine.checkpoint_loading import CheckpointContent, first_of
from regseg_d2.engine.devices import backbone_prefix, unwrap_model
from regseg_d2.engine.initial_weights import load_timm_weights, offered_weights, weights_file
from regseg_d2.regularizers import Regularizer
from regseg_d2.weights.load_report import LoadReport
from regseg_d2.weights.names import AUTO
from regseg_d2.weights.network import BATCH_COUNTER
from regseg_d2.weights.published import AUXILIARY_PREFIXES
from regseg_d2.weights.reading import missing_message

logger = logging.getLogger(__name__)

# Modules that exist in training alone; evaluation does not need their state.
TRAINING_ONLY_PREFIX = "regularizers."
# Of Detectron2, behind a file: rename its tensors by what is alike.
_HEURISTICS = "?matching_heuristics=True"


class SafeCheckpointer:
    """Saves and loads the files of Detectron2's checkpointer, and can be trusted in both directions.

    - Loading reads tensors and plain containers. A file that needs more is refused, and its code does
      not run, unless ``trust_pickle`` is set.
    - Checkpoints of other packages are put under the names of the model, see ``weights/published.py``.
    - Weights by name are downloaded when they are loaded, see ``weights/names.py``.
    - Writing goes to a temporary file that is then renamed; ``last_checkpoint`` follows after it, so it
      never names a file that was not whole when it was written. Where the file was damaged since, a run
      is continued from the one before it.
    - What was and was not loaded is reported in one table; where the model must be the same as the
      one that was saved (``--resume``, ``--eval-only``), a difference is an error.

    Attributes:
        backbone_is_loaded: whether a tensor of the backbone was loaded.
        begins_history: whether the next checkpoint is the first one of a run in the folder of another.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        cfg: CfgNode | None = None,
        trust_pickle: bool = False,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        """Prepares loading and saving, and deletes half written files of a killed run.

        Args:
            model: the model, wrapped in DistributedDataParallel or not.
            save_dir: folder of the checkpoints.
            cfg: config of the model; without it, checkpoints of other packages are not recognised.
            trust_pickle: load files that hold more than tensors and plain containers. Their code runs.
            save_to_disk: whether this process writes; by default the main process does.
            checkpointables: objects with ``state_dict`` and ``load_state_dict``, saved along.
        """
        self.model = unwrap_model(model)
        self.checkpointables = checkpointables
        self.save_dir = save_dir
        self.save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        self.backbone_is_loaded = False
        self.begins_history = False
        self._cfg = cfg
        self._trust_pickle = trust_pickle
        if self.save_dir and self.save_to_disk and os.path.isdir(self.save_dir):
            for leftover in remove_partial_files(self.save_dir):
                logger.warning("Removed '%s', left half written by a killed run.", leftover)

    # ------------------------------------------------------------------------------------------ saving

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Writes model and checkpointables to ``<save_dir>/<name>.pth``.

        ``tag`` makes it the file that ``--resume`` continues from; ``kwargs`` are saved along.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = self._state() | kwargs
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        announce = partial(
            announce_checkpoint, self.save_dir, f"{name}.pth", begins_history=self.begins_history
        )
        # Killed at any moment, a run continues from what is there: the history knows a file before it is.
        with atomic_writer(path, "wb", before_replacing=announce if tag else None) as file:
            torch.save(data, file)
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def require_room(self) -> None:
        """Refuses to begin where no checkpoint fits.

        Raises:
            DiskFullError: the disk of the folder has less room than one takes.
        """
        if self.save_dir and self.save_to_disk:
            require_room(self.save_dir, self._state())

    def _state(self) -> dict[str, Any]:
        return {key: part.state_dict() for key, part in {"model": self.model, **self.checkpointables}.items()}

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Names the file that ``--resume`` continues from."""
        tag_checkpoint(self.save_dir, last_filename_basename)
        self.begins_history = False

    def has_checkpoint(self) -> bool:
        """Whether a run has left checkpoints in the folder."""
        return holds_checkpoints(self.save_dir)

    def get_checkpoint_file(self) -> str:
        """Path of the newest checkpoint; "" where there is none."""
        tag = Path(self.save_dir, TAG_FILE)
        return os.path.join(self.save_dir, tag.read_text().strip()) if tag.is_file() else ""

    def last_good(self) -> str:
        """Says which checkpoint this run could be continued from."""
        path = self.get_checkpoint_file()
        if self.begins_history or not path:
            return "There is no checkpoint of this run yet."
        return f"The last good checkpoint is '{path}'; --resume continues from it."

    # ----------------------------------------------------------------------------------------- loading

    def load(
        self,
        path: str,
        checkpointables: Sequence[str] | None = None,
        *,
        strict: bool = False,
        published: bool = True,
        ignore_prefixes: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Loads a checkpoint into the model and the checkpointables.

        Args:
            path: file, or a name as in docs/weights.md; "" loads nothing.
            checkpointables: names of those to load; None is all of them, each of which must be in the file.
            strict: every key and shape must agree, in both directions.
            published: whether it may be a checkpoint of another package.
            ignore_prefixes: keys that ``strict`` does not look at.

        Returns:
            What else the file holds.

        Raises:
            CheckpointError: the file is missing, cannot be downloaded, is damaged, refused, or does not fit.
            ConfigError: there are no weights of that name.
        """
        if not path:
            return {}
        by_likeness = path.endswith(_HEURISTICS)
        path = weights_file(path.removesuffix(_HEURISTICS), self._cfg)
        self._check_visible_everywhere(path)
        content = CheckpointContent.read(path, trust_pickle=self._trust_pickle, by_likeness=by_likeness)
        # What belongs to the run follows once the model fits.
        report = content.load_into(
            self.model, published_for=self._cfg if published else None, continues_run=strict
        )
        self._note_loaded(path, report)
        if strict:
            report.without(ignore_prefixes).require_all(path, TRAINING_ONLY_PREFIX, self._bank_size_keys())
        elif not report.loaded:
            raise CheckpointError(
                f"'{path}': none of its {len(report.dropped)} keys is one of the model's. It is a checkpoint "
                f"of another network. In the file: {first_of(report.dropped)}; in the model: "
                f"{first_of(report.new)}."
            )
        else:
            _warn_about_backbone(path, report, backbone_prefix(self.model))
        rest = content.rest
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key not in rest:
                raise CheckpointError(
                    f"'{path}' has no '{key}' in it, so the run cannot be continued from it. Start from its "
                    "weights instead: MODEL.WEIGHTS with this file, without --resume."
                )
            try:
                self.checkpointables[key].load_state_dict(rest.pop(key))
            except CheckpointError as error:
                raise CheckpointError(f"'{path}': {error}") from error
        return rest

    def _load_offered(self) -> tuple[str, LoadReport] | None:
        """Loads the weights that the meta-architecture finds itself, if any; tells how they are called."""
        offered = offered_weights(self.model, self._cfg) if self._cfg else None
        if offered is None:
            return None
        name, weights = offered
        report = CheckpointContent(name, weights, {}).load_into(self.model)
        self._note_loaded(name, report)
        return name, report

    def _note_loaded(self, path: str, report: LoadReport) -> None:
        logger.info("Loaded '%s':\n%s", path, report.table())
        loaded = report.without_suffix(BATCH_COUNTER).loaded  # torch fills counters in
        self.backbone_is_loaded |= any(key.startswith(backbone_prefix(self.model)) for key in loaded)

    def _bank_size_keys(self) -> dict[str, str]:
        regularizers = getattr(self.model, "regularizers", {})
        return {name: r.bank_keys[0] for name, r in regularizers.items() if isinstance(r, Regularizer)}

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continues from the last checkpoint of ``save_dir``, or loads the weights to start from.

        Args:
            path: file or name of the weights to start from where there is nothing to continue; "" is
                what the meta-architecture finds itself, else MODEL.TIMM.PRETRAINED for a backbone of timm's.
            resume: whether to look for a checkpoint to continue from.

        Raises:
            CheckpointError: see :meth:`load`; a checkpoint that is continued from must fit exactly.
        """
        newest = from_main_process(self._find_newest) if resume else None
        if newest is not None:
            rest = self.load(newest, strict=True, published=False)
            logger.info("Continuing from '%s', written after step %s.", newest, _step_of(rest))
            return rest
        if path or self._cfg is None:
            return self.load(path, checkpointables=[])
        if self._load_offered() is None:
            self.backbone_is_loaded |= load_timm_weights(self.model, self._cfg)
        return {}

    def _find_newest(self) -> str | None:
        """Returns the checkpoint to continue from, or None for a new run."""
        return str(newest_whole_checkpoint(self.save_dir)) if self.has_checkpoint() else None

    def load_for_evaluation(self, path: str) -> dict[str, Any]:
        """Loads weights of which every key but those of the regularizers must fit.

        Args:
            path: file or name; "" is what the meta-architecture finds itself.

        Raises:
            CheckpointError: there are none, ``path`` is "auto", or see :meth:`load`.
        """
        if not path and (offered := self._load_offered()):
            name, report = offered
            report.without((TRAINING_ONLY_PREFIX,)).require_all(name, TRAINING_ONLY_PREFIX)
            return {}
        if path in ("", AUTO):
            raise CheckpointError(
                "There are no weights to evaluate: give MODEL.WEIGHTS FILE, or --resume to take the last "
                f"checkpoint of OUTPUT_DIR ('{self.save_dir}')."
            )
        # What another package's checkpoint has for training alone may be left.
        ignored = (TRAINING_ONLY_PREFIX, *AUXILIARY_PREFIXES)
        return self.load(path, checkpointables=[], strict=True, ignore_prefixes=ignored)

    def _check_visible_everywhere(self, path: str) -> None:
        """Raises on every process alike, where a file is missing on one of them."""
        if "://" in path:
            return
        visible = comm.all_gather(os.path.isfile(path))
        if not any(visible):
            raise CheckpointError(missing_message(path))
        if not all(visible):
            missing = [rank for rank, there in enumerate(visible) if not there]
            raise CheckpointError(
                f"'{path}' is not there on the processes {missing}: put it where all machines see it."
            )


def _step_of(content: Mapping[str, Any]) -> str:
    iteration = content.get("iteration")
    return str(iteration + 1) if type(iteration) is int else "?"


def _warn_about_backbone(path: str, report: LoadReport, prefix: str) -> None:
    loaded, missing = (
        sum(key.startswith(prefix) for key in keys)
        for keys in (report.loaded, (*report.new, *(key for key, _, _ in report.mismatched)))
    )
    if missing > loaded:
        logger.warning(
            "Only %d of the backbone's %d tensors are in '%s': is it a checkpoint of this backbone?",
            loaded,
            loaded + missing,
            path,
        )
