"""From a checkpoint file to the tensors of a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import _strip_prefix_if_present
from torch import Tensor, nn

from regseg_d2.common.errors import CheckpointError
from regseg_d2.regularizers import Regularizer
from regseg_d2.state.random_stream import RandomStream
from regseg_d2.weights.detectron2_names import zoo_content
from regseg_d2.weights.load_report import LoadReport
from regseg_d2.weights.network import BATCH_COUNTER, NOT_NEEDED, Network
from regseg_d2.weights.published import CONVERTED_FROM, convert_if_published
from regseg_d2.weights.reading import as_tensor, check_names, load_file, weights_in

logger = logging.getLogger(__name__)


@dataclass
class CheckpointContent:
    """What a checkpoint file holds.

    Attributes:
        path: the file.
        weights: tensors or arrays by name, where the file is one of weights; checked when they are loaded.
        rest: what else is in it.
        by_likeness: tensors belong to the model's of similar names and equal shapes, as Detectron2 does it.
        is_caffe2: names and layouts are Caffe2's.
    """

    path: str
    weights: Any
    rest: dict[str, Any]
    by_likeness: bool = False
    is_caffe2: bool = False

    @classmethod
    def read(cls, path: str, *, trust_pickle: bool = False, by_likeness: bool = False) -> CheckpointContent:
        """Reads a file of this package, of Detectron2 (``.pkl`` of its model zoo) or of pycls (``.pyth``).

        Args:
            path: the file.
            trust_pickle: read files that can run code.
            by_likeness: see the attribute.

        Raises:
            CheckpointError: the file is missing, damaged, refused, or no checkpoint.
        """
        content = load_file(PathManager.get_local_path(path), trust_pickle=trust_pickle)
        if path.endswith(".pkl"):
            content = zoo_content(content, path)
        elif not isinstance(content, dict):
            raise CheckpointError(f"'{path}' holds a {type(content).__name__}; expected a dict of weights.")
        elif path.endswith(".pyth"):
            if "model_state" not in content:
                raise CheckpointError(f"'{path}' has no 'model_state', under which .pyth files keep weights.")
            content = {"model": content["model_state"], "matching_heuristics": True}
        elif "model" not in content:
            content = {"model": content}
        weights = content.pop("model")
        by_likeness = by_likeness or bool(content.get("matching_heuristics", False))
        return cls(path, weights, content, by_likeness, content.get("__author__") == "Caffe2")

    def load_into(
        self, model: nn.Module, *, published_for: CfgNode | None = None, continues_run: bool = False
    ) -> LoadReport:
        """Puts the weights into a model, once; what does not fit stays out and is reported.

        Args:
            model: the model.
            published_for: its config, where the file may be one of another package; else None.
            continues_run: counters and random numbers of the run are loaded, too.

        Raises:
            CheckpointError: these are no weights.
        """
        converted = None
        if published_for is not None:
            state = weights_in(self.weights, self.path)
            converted = convert_if_published(state, Network.of(published_for, model), self.path)
        weights = self._tensors() if converted is None else converted
        if not continues_run:
            for key in _run_counters(model):
                weights.pop(key, None)
        _leave_incomplete_state_new(model, weights)
        has_counters = any(key.endswith(BATCH_COUNTER) for key in weights)
        if self.by_likeness and converted is None:
            own = model.state_dict()
            weights = align_and_update_state_dicts(own, weights, c2_conversion=self.is_caffe2)
        report = _load_what_fits(model, weights)
        if converted is not None or CONVERTED_FROM in self.rest:
            return report.without_suffix(*NOT_NEEDED)
        # torch fills batch norm's counters in where an old file has none; they were not loaded.
        return report if has_counters else report.without_suffix(BATCH_COUNTER)

    def _tensors(self) -> dict[str, Tensor]:
        """The weights as tensors, in place: torch's notes on the versions of modules stay with them."""
        check_names(self.weights, self.path)
        _strip_prefix_if_present(self.weights, "module.")
        self.weights.update({key: as_tensor(value) for key, value in self.weights.items()})
        others = [key for key, value in self.weights.items() if not isinstance(value, Tensor)]
        if others:
            raise CheckpointError(
                f"The checkpoint has no weights where they were expected: {first_of(others)} are no tensors. "
                "Expected a dict of tensors, by itself or under 'model'."
            )
        return self.weights


def first_of(keys: Sequence[str], count: int = 3) -> str:
    """Names the first keys, for a message."""
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "") if keys else "nothing"


def _load_what_fits(model: nn.Module, weights: dict[str, Tensor]) -> LoadReport:
    """Loads the tensors that have the model's shapes."""
    own = model.state_dict()
    mismatched = tuple(
        (key, tuple(value.shape), tuple(own[key].shape))
        for key, value in weights.items()
        if key in own and value.shape != own[key].shape
    )
    for key, _, _ in mismatched:
        del weights[key]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    return LoadReport.of(model, missing, unexpected, mismatched)


def _run_counters(model: nn.Module) -> list[str]:
    """Keys of what belongs to a run and not to its weights: steps of the warm-up, random numbers."""
    counters: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, Regularizer):
            counters += [f"{name}.num_forwards", f"{name}.zero_streaks"]
        elif isinstance(module, RandomStream):
            counters += [f"{name}.{key}" for key, _ in module.named_buffers(recurse=False)]
    return counters


def _leave_incomplete_state_new(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Removes the buffers of a module of which another buffer has another shape.

    They belong together: a bank that is new, with the counts of the one in the file, would be taken to
    be full.
    """
    fits = {key: state[key].shape == buffer.shape for key, buffer in model.named_buffers() if key in state}
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
