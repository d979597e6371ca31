"""Checkpoints: loaded without running their code, written whole or not at all."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm
from fvcore.common.checkpoint import _strip_prefix_if_present
from torch import nn

from regseg_d2.common.errors import CheckpointError
from regseg_d2.common.files import atomic_writer, remove_partial_files, require_room
from regseg_d2.engine.checkpoint_history import (
    TAG_FILE,
    holds_checkpoints,
    newest_whole_checkpoint,
    record_checkpoint,
)
from regseg_d2.engine.initial_weights import BACKBONE_PREFIX, load_timm_weights, weights_file
from regseg_d2.regularizers import Regularizer
from regseg_d2.state.random_stream import RandomStream
from regseg_d2.weights.detectron2_names import zoo_content
from regseg_d2.weights.load_report import LoadReport
from regseg_d2.weights.names import AUTO
from regseg_d2.weights.network import BATCH_COUNTER, Network
from regseg_d2.weights.published import AUXILIARY_PREFIXES, convert_if_published
from regseg_d2.weights.reading import check_names, load_file, missing_message, weights_in

logger = logging.getLogger(__name__)

# Modules that exist in training alone; evaluation does not need their state.
TRAINING_ONLY_PREFIX = "regularizers."
# Of Detectron2, behind a file: rename its tensors by what is alike.
_HEURISTICS = "?matching_heuristics=True"


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with files that can be trusted, in both directions.

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
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.logger = logger
        self.cfg = cfg
        self.trust_pickle = trust_pickle
        self.backbone_is_loaded = False
        self._is_new_run = True
        self._may_be_published = False
        #: Whether the next checkpoint is the first one of a run in the folder of another.
        self.begins_history = False
        if self.save_dir and self.save_to_disk and os.path.isdir(self.save_dir):
            for leftover in remove_partial_files(self.save_dir):
                logger.warning("Removed '%s', left half written by a killed run.", leftover)

    # ------------------------------------------------------------------------------------------ saving

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Writes model and checkpointables to ``<save_dir>/<name>.pth``.

        Args:
            name: file name without its ending.
            tag: whether ``--resume`` shall continue from this file.
            kwargs: more to save.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = self._state() | kwargs
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        with atomic_writer(path, "wb") as file:
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
        record_checkpoint(self.save_dir, last_filename_basename, begins_history=self.begins_history)
        self.begins_history = False

    def has_checkpoint(self) -> bool:
        """Whether a run has left checkpoints in the folder."""
        return holds_checkpoints(self.save_dir)

    def last_good(self) -> str:
        """Says which checkpoint this run could be continued from."""
        tag = Path(self.save_dir, TAG_FILE)
        if self.begins_history or not tag.is_file():
            return "There is no checkpoint of this run yet."
        return f"The last good checkpoint is '{self.get_checkpoint_file()}'; --resume continues from it."

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
        query = _HEURISTICS if path.endswith(_HEURISTICS) else ""
        path = weights_file(path.removesuffix(query), self.cfg)
        self._check_visible_everywhere(path)
        path += query
        self._may_be_published = published and self.cfg is not None
        try:
            return self._load_checked(path, checkpointables, strict, ignore_prefixes)
        finally:
            # Detectron2 leaves it set when loading fails, and then asserts on the next load.
            self._parsed_url_during_load = None

    def _load_checked(
        self,
        path: str,
        checkpointables: Sequence[str] | None,
        strict: bool,
        ignore_prefixes: tuple[str, ...],
    ) -> dict[str, Any]:
        wanted = list(self.checkpointables if checkpointables is None else checkpointables)
        # The base class loads the model alone; what belongs to the run follows once the model fits.
        self._report: LoadReport | None = None
        self._is_new_run = not strict
        rest = super().load(path, checkpointables=[])
        report = self._report
        if report is None:
            raise CheckpointError(f"'{path}' has no model in it.")
        logger.info("Loaded '%s':\n%s", path, report.table())
        loaded = report.without_suffix(BATCH_COUNTER).loaded  # torch fills counters in
        self.backbone_is_loaded |= any(key.startswith(BACKBONE_PREFIX) for key in loaded)
        if strict:
            report.without(ignore_prefixes).require_all(path, TRAINING_ONLY_PREFIX, self._bank_size_keys())
        elif not report.loaded:
            raise CheckpointError(
                f"'{path}': none of its {len(report.dropped)} keys is one of the model's. It is a checkpoint "
                "of "
                f"another network. In the file: {_first(report.dropped)}; in the model: {_first(report.new)}."
            )
        else:
            _warn_about_backbone(path, report)
        for key in wanted:
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

    def _bank_size_keys(self) -> dict[str, str]:
        regularizers = getattr(self.model, "regularizers", {})
        return {name: r.bank_keys[0] for name, r in regularizers.items() if isinstance(r, Regularizer)}

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continues from the last checkpoint of ``save_dir``, or loads the weights to start from.

        Args:
            path: file or name of the weights to start from where there is nothing to continue; "" is
                MODEL.TIMM.PRETRAINED, for a backbone of timm's.
            resume: whether to look for a checkpoint to continue from.

        Raises:
            CheckpointError: see :meth:`load`; a checkpoint that is continued from must fit exactly.
        """
        newest = self._find_newest() if resume else None
        if newest is not None:
            rest = self.load(newest, strict=True, published=False)
            logger.info("Continuing from '%s', written after step %s.", newest, _step_of(rest))
            return rest
        if path or self.cfg is None:
            return self.load(path, checkpointables=[])
        self.backbone_is_loaded |= load_timm_weights(self.model, self.cfg)
        return {}

    def _find_newest(self) -> str | None:
        """Returns the checkpoint to continue from, the same on every process, or None for a new run."""
        found: str | CheckpointError | None = None
        if comm.is_main_process() and self.has_checkpoint():
            try:
                found = str(newest_whole_checkpoint(self.save_dir))
            except CheckpointError as error:
                found = error
        found = comm.all_gather(found)[0]
        if isinstance(found, CheckpointError):
            raise found
        return found

    def load_for_evaluation(self, path: str) -> dict[str, Any]:
        """Loads weights of which every key but those of the regularizers must fit.

        Raises:
            CheckpointError: ``path`` is empty or "auto", or see :meth:`load`.
        """
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

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return zoo_content(load_file(filename, trust_pickle=self.trust_pickle), filename)
        if filename.endswith(".pyth"):
            loaded = self._torch_load(filename)
            if "model_state" not in loaded:
                raise CheckpointError(
                    f"'{filename}' has no 'model_state', under which .pyth files keep weights."
                )
            return {"model": loaded["model_state"], "matching_heuristics": True}
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> Any:
        loaded = load_file(f, trust_pickle=self.trust_pickle)
        if not isinstance(loaded, dict):
            raise CheckpointError(f"'{f}' holds a {type(loaded).__name__}; expected a dict of weights.")
        return loaded

    def _convert_published(self, checkpoint: dict[str, Any]) -> None:
        """Puts the weights of another package's checkpoint under the names of the model."""
        path = self._parsed_url_during_load.path
        state = weights_in(checkpoint["model"], path)
        converted = convert_if_published(state, Network.of(self.cfg, self.model), path)
        if converted is not None:
            checkpoint["model"] = converted
            checkpoint["matching_heuristics"] = False

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        path = self._parsed_url_during_load.path
        if self._may_be_published:
            self._convert_published(checkpoint)
        check_names(checkpoint["model"], path)
        not_tensors = [key for key, value in checkpoint["model"].items() if not hasattr(value, "shape")]
        if not_tensors:
            raise CheckpointError(
                f"The checkpoint has no weights where they were expected: {_first(not_tensors)} are no "
                "tensors. "
                "Expected a dict of tensors, by itself or under 'model'."
            )
        _strip_prefix_if_present(checkpoint["model"], "module.")
        if self._is_new_run:
            for key in _run_counters(self.model):
                checkpoint["model"].pop(key, None)
        _leave_incomplete_state_new(self.model, checkpoint["model"])
        has_counters = any(key.endswith(BATCH_COUNTER) for key in checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        report = LoadReport.from_incompatible(self.model, incompatible)
        # torch fills batch norm's counters in where an old file has none; they were not loaded.
        self._report = report if has_counters else report.without_suffix(BATCH_COUNTER)
        return incompatible

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Nothing: :meth:`load` logs one table instead."""


def _step_of(content: Mapping[str, Any]) -> str:
    iteration = content.get("iteration")
    return str(iteration + 1) if type(iteration) is int else "?"


def _run_counters(model: nn.Module) -> list[str]:
    """Keys of what belongs to a run and not to its weights: steps of the warm-up, random numbers."""
    counters: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Regularizer):
            counters += [f"{name}.num_forwards", f"{name}.zero_streaks"]
        elif isinstance(module, RandomStream):
            counters += [f"{name}.{key}" for key, _ in module.named_buffers(recurse=False)]
    return counters


def _leave_incomplete_state_new(model: nn.Module, state: dict[str, Any]) -> None:
    """Removes the buffers of a module of which another buffer has another shape.

    They belong together: a bank that is new, with the counts of the one in the file, would be taken to
    be full.

    Args:
        model: the model that is loaded into.
        state: tensors or arrays by key; changed in place.
    """
    shapes = {key: tuple(buffer.shape) for key, buffer in model.named_buffers() if key in state}
    fits = {key: tuple(state[key].shape) == shape for key, shape in shapes.items()}
    broken = {_module_of(key) for key, fit in fits.items() if not fit}
    left_new = [key for key, fit in fits.items() if fit and _module_of(key) in broken]
    for key in left_new:
        del state[key]
    if left_new:
        logger.warning(
            "Not loaded, as other buffers of the same modules have another shape: %s.", ", ".join(left_new)
        )


def _module_of(key: str) -> str:
    return key.rpartition(".")[0]


def _warn_about_backbone(path: str, report: LoadReport) -> None:
    loaded, missing = (
        sum(key.startswith(BACKBONE_PREFIX) for key in keys)
        for keys in (report.loaded, (*report.new, *(key for key, _, _ in report.mismatched)))
    )
    if missing > loaded:
        logger.warning(
            "Only %d of the backbone's %d tensors are in '%s': is it a checkpoint of this backbone?",
            loaded,
            loaded + missing,
            path,
        )


def _first(keys: Sequence[str], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "") if keys else "nothing"
