"""ContextPrior: contexts of the same class and of the others, told apart by a learned prior (CPNet)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn

from regseg_d2.common.distributed import global_mean
from regseg_d2.modeling.heads.registries import CONTEXT_MODULE
from regseg_d2.modeling.heads.stages import Stage
from regseg_d2.modeling.layers import check_head_key, conv_norm_relu, resize
from regseg_d2.modeling.norms import get_norm
from regseg_d2.ops.labels import downsample_labels, one_hot_labels
from regseg_d2.ops.precision import full_precision

GRID_LABELS = ("center", "corner")


@CONTEXT_MODULE.register()
class ContextPrior(Stage):
    """Context prior layer (Yu et al., "Context Prior for Scene Segmentation", CVPR 2020, section 3.3).

    Every position says of every position whether it is of its own class: the prior, P x P probabilities, in
    training the side output ``affinity`` with :class:`AffinityLoss`. The features, aggregated by an
    :class:`Aggregation`, are averaged over all positions with these as weights (the context of the same
    class), and with 1 minus these (that of the others); a 1x1 block follows on each. Out come both, side by
    side. The paper's head is this with ``MODEL.SEM_SEG_HEAD.CONCAT_INPUT: True`` and the 3x3 block of
    ``PROJECTION: ConvBlock``.

    The prior's channels are positions, so that the published network takes one size of features only. Here
    the prior is made on a grid of ``size``: features of any other size, once aggregated, are brought to it
    (averaged where they are larger, interpolated where smaller), and the contexts back by interpolation.
    At that size nothing is resampled, and the network is the published one. On a GPU torch has no
    deterministic gradient of the averages: features should be smaller or of that size with
    ``DETERMINISTIC: True``.

    Args:
        channels: channels of each of the two contexts.
        size: height and width of the grid; P is their product.
        kernel_size: length of the aggregation's kernels.
        affinity_loss_weight: weight of the loss of the prior.
        labels: how labels come to the grid: ``"center"`` or ``"corner"``, see ``downsample_labels``.
    """

    #: Name of the prior's logits among the side outputs: their loss is ``loss_sem_seg_affinity``.
    prior_name = "affinity"

    head_keys = {
        "size": "CPNET_SIZE",
        "kernel_size": "CPNET_KERNEL_SIZE",
        "affinity_loss_weight": "CPNET_AFFINITY_LOSS_WEIGHT",
        "labels": "CPNET_LABELS",
    }

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        size: Sequence[int],
        kernel_size: int,
        num_classes: int,
        ignore_value: int,
        affinity_loss_weight: float,
        norm: str,
        labels: str = "center",
    ) -> None:
        super().__init__()
        check_head_key(
            "CPNET_SIZE", list(size), len(size) == 2 and min(size) >= 2, "two numbers of 2 or more"
        )
        check_head_key(
            "CPNET_SIZE", list(size), norm != "GN" or math.prod(size) % 32 == 0, "a multiple of 32 positions"
        )
        check_head_key(
            "CPNET_KERNEL_SIZE", kernel_size, kernel_size >= 1 and kernel_size % 2 == 1, "an odd number"
        )
        check_head_key(
            "CPNET_AFFINITY_LOSS_WEIGHT", affinity_loss_weight, affinity_loss_weight >= 0, "a number >= 0"
        )
        check_head_key("CPNET_LABELS", labels, labels in GRID_LABELS, f"one of {GRID_LABELS}")
        self.out_channels = 2 * channels
        self.size = (size[0], size[1])
        self.side_loss_weights = {self.prior_name: affinity_loss_weight}
        self.side_losses = {self.prior_name: AffinityLoss(self.size, num_classes, ignore_value, labels)}
        self.aggregation = Aggregation(in_channels, channels, kernel_size, norm)
        positions = math.prod(self.size)
        self.prior = Conv2d(channels, positions, kernel_size=1, bias=not norm, norm=get_norm(norm, positions))
        weight_init.c2_msra_fill(self.prior)
        self.same = conv_norm_relu(channels, channels, 1, norm)
        self.others = conv_norm_relu(channels, channels, 1, norm)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Makes both contexts of ``(N, in_channels, h, w)``: ``(N, 2 * channels, h, w)``, the class's first.

        In training also the prior's logits ``(N, P, P)``: entry ``[n, i, j]`` is of whether position i is of
        the class of position j.
        """
        values = _resample(self.aggregation(x), self.size)
        prior = self.prior(values).flatten(2)
        values = values.flatten(2)
        same = torch.bmm(values, prior.sigmoid()) / prior.shape[1]
        # Weights that add up to 1 take the mean apart: no second product with P x P weights.
        others = values.mean(dim=2, keepdim=True) - same
        contexts = [self.same(same.unflatten(2, self.size)), self.others(others.unflatten(2, self.size))]
        features = resize(torch.cat(contexts, dim=1), x.shape[-2:])
        return features, {self.prior_name: prior} if self.training else {}


class Aggregation(nn.Module):
    """Aggregation module (section 3.3, figure 4a): a large kernel from two pairs of long depthwise ones.

    A 3x3 block, then two paths, k x 1 before 1 x k and 1 x k before k x 1, whose sum has a norm and a ReLU.
    (The authors' code has biases in the paths as well, which the norm behind takes out again except near the
    border.)
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: str) -> None:
        super().__init__()
        self.reduce = conv_norm_relu(in_channels, out_channels, 3, norm)
        column, row = (kernel_size, 1), (1, kernel_size)
        self.column_row = nn.Sequential(_depthwise(out_channels, column), _depthwise(out_channels, row))
        self.row_column = nn.Sequential(_depthwise(out_channels, row), _depthwise(out_channels, column))
        self.norm = get_norm(norm, out_channels) or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(N, in_channels, h, w)`` to ``(N, out_channels, h, w)``."""
        x = self.reduce(x)
        return self.norm(self.column_row(x) + self.row_column(x)).relu()


class AffinityLoss(nn.Module):
    """Affinity loss (section 3.2, Eq. 2 to 7): of the prior's logits, against which labels are equal.

    The unary term is the binary cross entropy of each pair of positions. The global term looks at one
    position's weights at once: minus the logarithms of precision, recall and specificity (Eq. 4 to 6). Labels
    come to the grid by nearest neighbour; both terms are means over the batch of all processes.

    The authors' code differs. Void is a class like the others there; here void positions are in no pair. It
    leaves the position itself out of precision and recall; here it counts, as in the paper's equations, and a
    class of one position has a finite loss. And it gives the specificity of positions of which there are no
    others the loss 100, the cut of torch's binary cross entropy; here it has none.

    Args:
        size: height and width of the grid of P positions.
        labels: ``"center"``, the pixel at the center of a cell of the grid, where the features sit that were
            averaged or interpolated to it; or ``"corner"``, its first one.
    """

    def __init__(
        self, size: tuple[int, int], num_classes: int, ignore_value: int, labels: str = "center"
    ) -> None:
        super().__init__()
        self.size = size
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.labels = labels

    def forward(self, prior: Tensor, labels: Tensor) -> Tensor:
        """Compares logits ``(N, P, P)``, as of :class:`ContextPrior`, and labels ``(N, H, W)``; a scalar."""
        labels = downsample_labels(labels, self.size, self.labels).flatten(1)
        labels = labels.masked_fill(labels == self.ignore_value, -1)
        with torch.autocast(prior.device.type, enabled=False):
            prior = full_precision(prior)
            classes = one_hot_labels(labels, self.num_classes, prior.dtype)
            valid = classes.sum(dim=1)
            totals = [_unary(prior, classes, valid), (_global(prior, classes) * valid).sum()]
            counts = [valid.sum(dim=1).square().sum(), valid.sum()]
            return global_mean(torch.stack(totals), torch.stack(counts)).sum()


def _unary(prior: Tensor, classes: Tensor, valid: Tensor) -> Tensor:
    """Sum of the binary cross entropies of all pairs of valid positions.

    That of a logit x is softplus(x), less x where the labels are equal: sums by class, products with the
    labels, spare the P x P map of equal labels.

    Of logits ``(N, P, P)``, one-hot labels ``(N, K, P)``, and 1 where a position has a class, ``(N, P)``.
    """
    as_different = torch.bmm(valid.unsqueeze(1), F.softplus(prior)).squeeze(1) * valid
    return as_different.sum() - (torch.bmm(classes, prior) * classes).sum()


def _global(prior: Tensor, classes: Tensor) -> Tensor:
    """Minus the logarithms of precision, recall and specificity of each position's weights, ``(N, P)``.

    Of logits ``(N, P, P)`` and one-hot labels ``(N, K, P)``; what comes out at a position without a class
    means nothing.
    """
    # Weights, and 1 minus weights, of all positions of a class together: (N, K, P). Sums of what is positive
    # only, so that small ones keep their digits.
    weights = torch.bmm(classes, prior.sigmoid())
    rejections = torch.bmm(classes, (-prior).sigmoid())
    class_sizes = classes.sum(dim=2, keepdim=True)
    num_same = (class_sizes * classes).sum(dim=1)
    num_others = class_sizes.sum(dim=1) - num_same
    log_same = _safe_log((weights * classes).sum(dim=1))
    log_precision = log_same - _safe_log(weights.sum(dim=1))
    log_recall = log_same - _safe_log(num_same)
    log_specificity = _safe_log((rejections * (1 - classes)).sum(dim=1)) - _safe_log(num_others)
    return -(log_precision + log_recall + torch.where(num_others > 0, log_specificity, 0.0))


def _safe_log(x: Tensor) -> Tensor:
    """The logarithm, finite and without a gradient at zero."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).log()


def _depthwise(channels: int, kernel_size: tuple[int, int]) -> nn.Conv2d:
    """A depthwise convolution that keeps the size, without bias."""
    padding = (kernel_size[0] // 2, kernel_size[1] // 2)
    conv = nn.Conv2d(channels, channels, kernel_size, padding=padding, groups=channels, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    return conv


def _resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Brings ``(N, C, h, w)`` to a grid: averages along a side that shrinks, interpolates one that grows."""
    kept = (min(x.shape[-2], size[0]), min(x.shape[-1], size[1]))
    if kept != tuple(x.shape[-2:]):
        x = F.adaptive_avg_pool2d(x, kept)
    return resize(x, size)
