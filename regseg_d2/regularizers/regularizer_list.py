"""Several regularizers as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.regularizers.base import Regularizer, plain_input
from regseg_d2.regularizers.compiling import outside_of_graphs
from regseg_d2.regularizers.inputs import RegularizerInput


class RegularizerList(nn.ModuleDict):
    """Several regularizers, called as one is; what they all need is computed once.

    Args:
        regularizers: the regularizers; as a mapping with the names that their state is kept under, else these
            are the regularizers' own.

    Raises:
        ConfigError: two have the same name, or they are for different classes or labels of void.
    """

    def __init__(self, regularizers: Iterable[Regularizer] | Mapping[str, Regularizer] = ()) -> None:
        if not isinstance(regularizers, Mapping):
            regularizers = list(regularizers)
            names = [regularizer.name for regularizer in regularizers]
            if len(set(names)) < len(names):
                raise ConfigError(f"regularizers are called {names}; give one of two a name=… of its own")
            regularizers = dict(zip(names, regularizers, strict=True))
        super().__init__(regularizers)
        for argument in ("num_classes", "ignore_index"):
            values = {name: getattr(regularizer, argument) for name, regularizer in regularizers.items()}
            if len(set(values.values())) > 1:
                raise ConfigError(
                    f"{argument} is {values}; regularizers that see the same labels need the same of all"
                )

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of all taps that are read."""
        return tuple(dict.fromkeys(tap for regularizer in self.all() for tap in regularizer.taps))

    def all(self) -> list[Regularizer]:
        """The regularizers, in order."""
        return cast("list[Regularizer]", list(self.values()))

    @outside_of_graphs
    def forward(
        self,
        features: Tensor | RegularizerInput,
        labels: Tensor | None = None,
        *,
        logits: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes the losses of all; see :meth:`Regularizer.forward`."""
        if not len(self):
            return {}
        if not isinstance(features, RegularizerInput):
            features = plain_input(self.all(), features, labels, logits)
        losses: dict[str, Tensor] = {}
        for regularizer in self.all():
            losses.update(regularizer(features))
        return losses
