"""MDRL's stage of the head: distributions of a memory, voted for and attended to (Yin et al.)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError, check_key
from regseg_d2.modeling.heads.registries import AUGMENT, CONTEXT_MODULE
from regseg_d2.modeling.layers import conv_norm_relu, init_classifier
from regseg_d2.modeling.norms import get_norm
from regseg_d2.ops.mdrl import aggregate, vote_and_fuse
from regseg_d2.state.distribution_memory import DistributionMemory

CONTEXT_READS = ("R", "backbone")


@AUGMENT.register()
class MDRL(nn.Module):
    """Adds to each pixel what a memory of N distributions per class says of it; stays at inference.

    R is the pixel's feature, of Z channels. A 1x1 convolution predicts classes from it (the base prediction,
    with a loss of its own). By these probabilities the distributions vote for N maps, which are fused to R_m
    (Eq. 9); attention of R on R_m gives R_dl (Eq. 10 and 11). Out come R, the context of the image R_il where
    the head has a context module, and R_dl, side by side (Eq. 4): the convolution that mixes them is the
    block that follows in the head, ``MODEL.SEM_SEG_HEAD.PROJECTION``.

    - With a context module R is a 3x3 block on the backbone's feature, and R_il the context of R (Eq. 3).
    - With plain convolutions in its place (``CONTEXT: FCN``) their output is R, and there is no R_il; only
      where that has not Z channels a 3x3 block makes it so.

    The memory is moved by the regularizer of the same name. Before a class was seen its distributions are
    zeros: it adds nothing to the votes, whatever its probability. With an empty memory all votes are zeros,
    R_m is the same everywhere, and so is R_dl.

    Args:
        in_channels: channels of what the context module puts out.
        deep_channels: channels of the backbone's feature.
        aggregates_context: whether the context module does more than convolve.
        context_reads: what R_il is the context of: ``"R"`` (Eq. 3), or the ``"backbone"``'s feature.
        channels: Z; 0 is ``in_channels``.
        num_distributions: distributions per class N.
        momentum: mu of Eq. 8.
        base_loss_weight: eta of Eq. 18.

    Raises:
        ConfigError: if an option is out of its range.
    """

    #: Name of the base prediction among the side outputs: its loss is ``loss_sem_seg_mdrl_base``.
    base_name = "mdrl_base"

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        deep_channels: int,
        aggregates_context: bool,
        context_reads: str = "R",
        channels: int,
        num_classes: int,
        num_distributions: int,
        momentum: float,
        base_loss_weight: float,
        norm: str,
    ) -> None:
        super().__init__()
        channels = channels or in_channels
        _check("CHANNELS", channels, channels >= 2 and channels % 2 == 0, "an even number, or 0")
        _check("NUM_DISTRIBUTIONS", num_distributions, num_distributions >= 1, "1 or more")
        _check("MOMENTUM", momentum, 0.0 <= momentum <= 1.0, "a number in [0, 1]")
        _check("BASE_LOSS_WEIGHT", base_loss_weight, base_loss_weight >= 0, "a number >= 0")
        _check("CONTEXT_READS", context_reads, context_reads in CONTEXT_READS, f"one of {CONTEXT_READS}")
        self.aggregates_context = aggregates_context
        self.base_comes_first = aggregates_context and context_reads == "R"
        self.entering_channels = channels if self.base_comes_first else deep_channels
        self.out_channels = 2 * channels + (in_channels if aggregates_context else 0)
        self.side_loss_weights = {self.base_name: base_loss_weight}
        self.memory = DistributionMemory(num_classes, num_distributions, channels, momentum)
        if aggregates_context:
            self.base: nn.Module = conv_norm_relu(deep_channels, channels, 3, norm)
        elif channels != in_channels:
            self.base = conv_norm_relu(in_channels, channels, 3, norm)
        else:
            self.base = nn.Identity()
        self.base_predictor = nn.Conv2d(channels, num_classes, kernel_size=1)
        init_classifier(self.base_predictor)
        # The 1x1 convolution that fuses the N maps, with the norm and the ReLU behind it.
        self.fusion = nn.Conv2d(num_distributions * channels, channels, kernel_size=1, bias=not norm)
        nn.init.kaiming_normal_(self.fusion.weight, nonlinearity="relu")
        self.fusion_norm = get_norm(norm, channels) or nn.Identity()
        inner = channels // 2
        # g_a, g_b, g_f and g_c.
        self.query = conv_norm_relu(channels, inner, 1, norm)
        self.key = conv_norm_relu(channels, inner, 1, norm)
        self.value = conv_norm_relu(channels, inner, 1, norm)
        self.expand = conv_norm_relu(inner, channels, 1, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int, deep_channels: int) -> dict[str, Any]:
        """Reads ``MODEL.REGULARIZERS.MDRL``, and ``CONTEXT`` and ``NORM`` of ``MODEL.SEM_SEG_HEAD``."""
        head, mdrl = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.REGULARIZERS.MDRL
        return {
            "in_channels": in_channels,
            "deep_channels": deep_channels,
            "aggregates_context": getattr(CONTEXT_MODULE.get(head.CONTEXT), "aggregates_context", True),
            "context_reads": mdrl.CONTEXT_READS,
            "channels": mdrl.CHANNELS,
            "num_classes": head.NUM_CLASSES,
            "num_distributions": mdrl.NUM_DISTRIBUTIONS,
            "momentum": mdrl.MOMENTUM,
            "base_loss_weight": mdrl.BASE_LOSS_WEIGHT,
            "norm": head.NORM,
        }

    def before_context(self, deep: Tensor) -> Tensor:
        """Maps the backbone's feature ``(B, deep_channels, h, w)`` to what the context module reads.

        That is R, ``(B, Z, h, w)``, or the feature itself (``entering_channels``).
        """
        return self.base(deep) if self.base_comes_first else deep

    def forward(self, x: Tensor, deep: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds what the memory says to the context ``(B, in_channels, h, w)``: ``(B, out_channels, h, w)``.

        ``deep`` is ``(B, entering_channels, h, w)``, what :meth:`before_context` gave. In training the base
        prediction's logits ``(B, K, h, w)`` come by name.
        """
        base = deep if self.base_comes_first else self.base(deep if self.aggregates_context else x)
        base_logits = self.base_predictor(base)
        voted = self._vote(base_logits)
        attended = self.expand(aggregate(self.query(base), self.key(voted), self.value(voted)))
        parts = [base, x, attended] if self.aggregates_context else [base, attended]
        return torch.cat(parts, dim=1), {self.base_name: base_logits} if self.training else {}

    def _vote(self, base_logits: Tensor) -> Tensor:
        """R_m, ``(B, Z, h, w)``."""
        # A copy: in training the memory moves between this forward and its backward.
        distributions = self.memory.distributions.clone()
        fused = vote_and_fuse(base_logits.softmax(dim=1), distributions, self.fusion.weight.flatten(1))
        if self.fusion.bias is not None:
            fused = fused + self.fusion.bias.view(1, -1, 1, 1)
        return self.fusion_norm(fused).relu()

    def check_regularizers(self, regularizers: Mapping[str, nn.Module]) -> None:
        """Makes sure that training fills the memory.

        Raises:
            ConfigError: if none of them moves the memory.
        """
        if not any(getattr(r, "memory", None) is self.memory for r in regularizers.values()):
            raise ConfigError(
                "MODEL.SEM_SEG_HEAD.AUGMENT is 'MDRL', whose memory the regularizer MDRL fills, and none of "
                f"MODEL.REGULARIZERS.NAMES {list(regularizers)} does that: add 'MDRL' to it, with "
                "MODEL.REGULARIZERS.MDRL.CLASSIFIER and FEATURES 'auto' (its LOCAL_WEIGHT and GLOBAL_WEIGHT "
                "may be 0)"
            )


def _check(key: str, value: Any, fine: bool, expected: str) -> None:
    check_key(f"MODEL.REGULARIZERS.MDRL.{key}", value, fine, expected)
