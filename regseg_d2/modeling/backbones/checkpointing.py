"""Gradient checkpointing: activations are computed a second time instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.backbones.timm_private import FeatureGetterNet


def enable_checkpointing(network: Any, name: str) -> RecomputationGuard:
    """Turns timm's gradient checkpointing on, block by block where the network can, else by stage.

    The network's forward has to run in the :meth:`~RecomputationGuard.first_pass` of the guard.

    Raises:
        ConfigError: if the network does not offer it.
    """
    stages = [child for child in network.children() if hasattr(child, "grad_checkpointing")]
    try:
        if isinstance(network, FeatureGetterNet):
            network.model.set_grad_checkpointing(True)
        elif stages:
            for stage in stages:
                stage.grad_checkpointing = True
        else:
            network.set_grad_checkpointing(True)
    except (AssertionError, AttributeError, NotImplementedError) as error:
        raise ConfigError(
            f"MODEL.TIMM.CHECKPOINT is True, and timm has no gradient checkpointing for {name!r}; "
            "expected False"
        ) from error
    return RecomputationGuard(network)


class RecomputationGuard:
    """Keeps batch norms from counting a batch twice.

    A block that is computed again in the backward pass would move its running statistics a second time, and
    evaluation would differ from that of a network without checkpointing.

    The hooks on the batch norms stay.
    """

    def __init__(self, network: nn.Module) -> None:
        self._in_first_pass = False
        self._held: dict[nn.Module, tuple[float | None, Tensor | None]] = {}
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(self._hold)
                # Also after an exception: torch ends a recomputation with one, once it has all it needs.
                module.register_forward_hook(self._release, always_call=True)

    @contextmanager
    def first_pass(self) -> Iterator[None]:
        """Context of the forward that counts."""
        self._in_first_pass = True
        try:
            yield
        finally:
            self._in_first_pass = False

    def _hold(self, norm: Any, args: Any) -> None:
        if self._in_first_pass or not norm.training:
            return
        count = norm.num_batches_tracked
        self._held[norm] = (norm.momentum, None if count is None else count.clone())
        norm.momentum = 0.0

    def _release(self, norm: Any, args: Any, output: Any) -> None:
        if norm not in self._held:
            return
        norm.momentum, count = self._held.pop(norm)
        if count is not None:
            norm.num_batches_tracked.copy_(count)
