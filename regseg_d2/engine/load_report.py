"""What of a checkpoint went into a model, and what did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fvcore.common.checkpoint import _filter_reused_missing_keys
from tabulate import tabulate
from torch import nn

from regseg_d2.errors import CheckpointError

SHOWN_GROUPS = 20


@dataclass(frozen=True)
class LoadReport:
    """The keys of a model and of a checkpoint, sorted by what became of them.

    Attributes:
        loaded: keys that were loaded.
        new: keys that only the model has; they keep the values it was built with.
        dropped: keys that only the file has.
        mismatched: ``(key, shape in the file, shape in the model)``; not loaded either.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @classmethod
    def from_incompatible(cls, model: nn.Module, incompatible: Any) -> LoadReport:
        """Makes the report of what ``fvcore``'s ``_load_model`` returned.

        Args:
            model: the model that was loaded into.
            incompatible: its ``missing_keys``, ``unexpected_keys`` and ``incorrect_shapes``.
        """
        shapes = tuple((k, tuple(file), tuple(model_)) for k, file, model_ in incompatible.incorrect_shapes)
        mismatched = {key for key, _, _ in shapes}
        missing = [key for key in incompatible.missing_keys if key not in mismatched]
        # A tensor with two names is there if one of them is.
        new = set(_filter_reused_missing_keys(model, missing)) if missing else set()
        not_loaded = new | mismatched | set(missing)
        loaded = tuple(key for key in model.state_dict() if key not in not_loaded)
        return cls(loaded, tuple(sorted(new)), tuple(sorted(incompatible.unexpected_keys)), shapes)

    def without(self, prefixes: tuple[str, ...]) -> LoadReport:
        """Returns the report without the keys that begin with one of ``prefixes``."""
        return self._keep(lambda key: not (prefixes and key.startswith(prefixes)))

    def without_suffix(self, suffix: str) -> LoadReport:
        """Returns the report without the keys that end with ``suffix``."""
        return self._keep(lambda key: not key.endswith(suffix))

    def _keep(self, wanted: Callable[[str], bool]) -> LoadReport:
        return LoadReport(
            tuple(filter(wanted, self.loaded)),
            tuple(filter(wanted, self.new)),
            tuple(filter(wanted, self.dropped)),
            tuple(item for item in self.mismatched if wanted(item[0])),
        )

    def table(self) -> str:
        """Returns one table of all four, tensors of one module on one line."""
        rows: list[tuple[str, int, str]] = [("loaded", len(self.loaded), "")]
        for title, keys in (
            ("new (in the model only)", self.new),
            ("dropped (in the file only)", self.dropped),
        ):
            rows.append((title, len(keys), _grouped(keys)))
        shapes = [f"{key}: {file} in the file, {model} in the model" for key, file, model in self.mismatched]
        rows.append(("other shape (not loaded)", len(shapes), "\n".join(shapes)))
        return tabulate(rows, headers=("", "tensors", "which"), tablefmt="simple")

    def require_all(self, path: str, training_only_prefix: str) -> None:
        """Raises unless every key was loaded.

        Args:
            path: the file, for the message.
            training_only_prefix: how keys begin whose absence has a cure of its own.

        Raises:
            CheckpointError: a key is new, dropped or of another shape.
        """
        if not (self.new or self.dropped or self.mismatched):
            return
        if all(key.startswith(training_only_prefix) for key in (*self.new, *self.dropped)) and (
            not self.mismatched
        ):
            here, there = ("without", "with") if self.dropped else ("with", "without")
            raise CheckpointError(
                f"'{path}' was written by a run {there} these regularizers, and this one is {here}: it "
                "cannot be "
                f"the same run continued.\n{self.table()}\nResume with the MODEL.REGULARIZERS.NAMES of the "
                "first "
                f"run, or start a new run from its weights: MODEL.WEIGHTS {path}, another OUTPUT_DIR, no "
                "--resume."
            )
        raise CheckpointError(
            f"'{path}' does not fit the model:\n{self.table()}\nUse the config.yaml of the run that wrote it "
            "(same head, backbone and MODEL.SEM_SEG_HEAD.NUM_CLASSES). To fine-tune from its weights "
            "instead, "
            "train with MODEL.WEIGHTS, another OUTPUT_DIR and no --resume."
        )


def _grouped(keys: tuple[str, ...]) -> str:
    groups = Counter(key.rpartition(".")[0] or key for key in keys)
    lines = [f"{name} ({count})" for name, count in groups.items()]
    if len(lines) > SHOWN_GROUPS:
        lines = [*lines[:SHOWN_GROUPS], f"... and {len(lines) - SHOWN_GROUPS} more modules"]
    return "\n".join(lines)
