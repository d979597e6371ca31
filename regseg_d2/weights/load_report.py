"""What of a checkpoint went into a model, and what did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fvcore.common.checkpoint import _filter_reused_missing_keys
from tabulate import tabulate
from torch import nn

from regseg_d2.common.errors import CheckpointError

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
    def of(
        cls,
        model: nn.Module,
        missing: Sequence[str],
        unexpected: Sequence[str],
        mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...],
    ) -> LoadReport:
        """Makes the report of what torch's ``load_state_dict`` returned; ``mismatched`` it was not given."""
        other_shape = {key for key, _, _ in mismatched}
        absent = [key for key in missing if key not in other_shape]
        # A tensor with two names is there if one of them is.
        new = set(_filter_reused_missing_keys(model, absent)) if absent else set()
        not_loaded = {*new, *other_shape, *absent}
        loaded = tuple(key for key in model.state_dict() if key not in not_loaded)
        return cls(loaded, tuple(sorted(new)), tuple(sorted(unexpected)), mismatched)

    def without(self, prefixes: tuple[str, ...]) -> LoadReport:
        """Returns the report without the keys that begin with one of ``prefixes``."""
        return self._keep(lambda key: not (prefixes and key.startswith(prefixes)))

    def without_suffix(self, *suffixes: str) -> LoadReport:
        """Returns the report without the keys that end with one of ``suffixes``."""
        return self._keep(lambda key: not key.endswith(suffixes))

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

    def require_all(
        self, path: str, training_only_prefix: str, bank_size_keys: Mapping[str, str] | None = None
    ) -> None:
        """Raises unless every key was loaded.

        Args:
            path: the file, for the message.
            training_only_prefix: how the keys of regularizers begin, whose absence has a cure of its own.
            bank_size_keys: key of the config that is the size of a bank, by the name of the regularizer.

        Raises:
            CheckpointError: a key is new, dropped or of another shape.
        """
        wrong = (*self.new, *self.dropped, *(key for key, _, _ in self.mismatched))
        if not wrong:
            return
        if not all(key.startswith(training_only_prefix) for key in wrong):
            raise CheckpointError(
                f"'{path}' does not fit the model:\n{self.table()}\nUse the config.yaml of the run that "
                "wrote it (same head, backbone and MODEL.SEM_SEG_HEAD.NUM_CLASSES). To fine-tune from its "
                "weights instead, train with MODEL.WEIGHTS, another OUTPUT_DIR and no --resume."
            )
        new_run = f"start a new run from its weights: MODEL.WEIGHTS {path}, another OUTPUT_DIR, no --resume"
        if self.mismatched:
            cures = dict.fromkeys(
                _size_cure(*item, training_only_prefix, bank_size_keys) for item in self.mismatched
            )
            raise CheckpointError(
                f"'{path}' holds state of regularizers in other shapes than this config asks for, so that "
                f"the same run cannot be continued:\n{self.table()}\n{' '.join(cures)} Or {new_run}; such "
                "state then begins anew."
            )
        here, there = ("without", "with") if self.dropped else ("with", "without")
        raise CheckpointError(
            f"'{path}' was written by a run {there} these regularizers, and this one is {here}: it cannot be "
            f"the same run continued.\n{self.table()}\nResume with the MODEL.REGULARIZERS.NAMES of the first "
            f"run, or {new_run}."
        )


def _size_cure(
    key: str,
    saved: tuple[int, ...],
    wanted: tuple[int, ...],
    prefix: str,
    bank_size_keys: Mapping[str, str] | None,
) -> str:
    """Says which key of the config to set back, as far as the tensor tells."""
    name, _, buffer = key.removeprefix(prefix).partition(".")
    section = f"MODEL.REGULARIZERS.{name}"
    size_keys = {"rows": (bank_size_keys or {}).get(name, "BANK_SIZE"), "distributions": "NUM_DISTRIBUTIONS"}
    size_key = size_keys.get(buffer.rpartition(".")[2])
    # Both are (classes, size, channels).
    others_fit = len(saved) == len(wanted) and saved[:1] + saved[2:] == wanted[:1] + wanted[2:]
    if size_key and others_fit:
        return f"Set {section}.{size_key} back from {wanted[1]} to {saved[1]}."
    if buffer == "projection.conv.weight" and others_fit:
        return (
            f"The feature of {name} had {saved[1]} channels there and has {wanted[1]} here: set "
            f"{section}.FEATURES to the tap it was. What 'auto' stands for may have changed: for RCH it was "
            "the encoder's last feature, such as 'backbone:out[res5]', before it was all stages side by side."
        )
    return f"Set the keys of {section} back to those in the config.yaml of the run that wrote it ({buffer})."


def _grouped(keys: tuple[str, ...]) -> str:
    groups = Counter(key.rpartition(".")[0] or key for key in keys)
    lines = [f"{name} ({count})" for name, count in groups.items()]
    if len(lines) > SHOWN_GROUPS:
        lines = [*lines[:SHOWN_GROUPS], f"... and {len(lines) - SHOWN_GROUPS} more modules"]
    return "\n".join(lines)
