"""Region-aware contrast: region centers and their loss against stored region centers.

Source: Hu, Cui, Wang, "Region-aware Contrastive Learning for Semantic Segmentation", ICCV 2021,
section 3.2. Where the published code does something else it is said at the function.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from regseg_d2.ops.known_gradients import with_row_gradients

CENTERS = ("dynamic", "gt_mean", "predicted")

# Numbers of the largest intermediate tensor: regions are worked off in blocks that keep below it, so
# that memory does not grow with the batch. One block is enough for a hundred regions and 150 full banks.
_MAX_LOGITS = 2**25
# Rows of a bank that are multiplied at a time, on a CPU.
_ROWS_A_PIECE = 2**11


def dynamic_weights(labels: Tensor, predictions: Tensor, confidence: Tensor) -> Tensor:
    """Weights of dynamic sampling, Eq. 3: little for what the network is sure of already.

    Args:
        labels: ``(N, h, w)`` class ids.
        predictions: ``(N, h, w)`` predicted classes.
        confidence: ``(N, h, w)`` probability of the predicted class.

    Returns:
        ``(N, h, w)``: ``1 - confidence`` on pixels predicted right (easy positives), 1 on pixels
        predicted wrong (hard positives); meaningless where the label is void.
    """
    return torch.where(predictions == labels, (1 - confidence).clamp(min=0), 1.0)


def unit_centers(centers: Tensor) -> tuple[Tensor, Tensor]:
    """Brings region centers to length 1.

    A center of length zero has no direction and takes no part: a class without a pixel, or, in Eq. 3,
    one of whose pixels the network is sure to the last digit.

    Args:
        centers: ``(N, K, C)``.

    Returns:
        Unit vectors ``(N, K, C)``, zeros where there is none, and bool ``(N, K)``: which there are.
    """
    present = centers.detach().square().sum(dim=2) > 0
    # The inner where keeps the gradient of the root finite where the center is zero.
    safe = torch.where(present.unsqueeze(2), centers, 1.0)
    unit = safe / torch.linalg.vector_norm(safe, dim=2, keepdim=True)
    return torch.where(present.unsqueeze(2), unit, 0.0), present


class Contrast(NamedTuple):
    """What :func:`region_contrast` knows of each region.

    Attributes:
        losses: ``(R,)``; zero without a positive.
        num_positives: ``(R,)`` long, stored samples of its class.
        positive_similarity: ``(R,)`` mean cosine with those, zero if there are none; no gradient.
        negative_similarity: ``(R,)`` mean cosine with the samples of other classes; no gradient.
    """

    losses: Tensor
    num_positives: Tensor
    positive_similarity: Tensor
    negative_similarity: Tensor


def region_contrast(
    queries: Tensor,
    classes: Tensor,
    samples: Tensor,
    filled: Tensor,
    temperature: float,
    own_slots: Tensor | None = None,
) -> Contrast:
    """Contrasts region centers with stored ones, Eq. 4.

    For a region q of class i: the mean over the stored positives k+ of class i of
    ``-log(e^{q k+ / t} / (e^{q k+ / t} + S))``, where S is the sum of ``e^{q k- / t}`` over the stored
    samples k- of all other classes. That is ``softplus(log S - q k+ / t)``. Without a negative it is
    zero, as the equation has it; without a positive it is zero too.

    (The published code adds up the banks of the other classes element by element instead of their
    exponentials.)

    Args:
        queries: ``(R, C)`` unit vectors q; gradients flow to these alone.
        classes: ``(R,)`` long, their classes.
        samples: ``(K, S, C)`` stored unit vectors, S a class, zeros where not filled. Any floating type;
            they may be overwritten before the backward pass.
        filled: ``(K, S)`` bool, slots that hold a sample.
        temperature: t.
        own_slots: ``(R,)`` long: the slot that holds the region itself, which is not its own positive.
            None: it is not stored.
    """
    size = samples.shape[1]
    is_positive = filled[classes]
    if own_slots is not None:
        is_positive = is_positive & (torch.arange(size, device=filled.device) != own_slots.unsqueeze(1))
    losses, positive_similarity, negative_similarity = _with_gradients(
        queries, classes, samples, filled, is_positive, temperature
    )
    return Contrast(losses, is_positive.sum(dim=1), positive_similarity, negative_similarity)


def _with_gradients(
    queries: Tensor,
    classes: Tensor,
    samples: Tensor,
    filled: Tensor,
    is_positive: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, mean positive and mean negative cosine, each ``(R,)``; only the losses have a gradient."""
    needs_gradient = queries.requires_grad and torch.is_grad_enabled()
    losses, positive, negative = queries.new_zeros(3, len(queries)).unbind()
    gradients = torch.zeros_like(queries)
    length = max(1, _MAX_LOGITS // filled.numel())
    with torch.no_grad():
        for start in range(0, len(queries), length):
            part = slice(start, start + length)
            block = _Block(queries[part], classes[part], samples, filled, is_positive[part], temperature)
            losses[part], positive[part], negative[part] = block.losses, *block.similarities
            if needs_gradient:
                gradients[part] = block.gradients()
    return with_row_gradients(queries, losses, gradients), positive, negative


class _Block:
    """Losses and gradients of some regions; the arguments are those of :func:`region_contrast`.

    Attributes:
        losses: ``(R,)``.
        similarities: mean cosines with positives and with negatives, each ``(R,)``.
    """

    def __init__(
        self,
        queries: Tensor,
        classes: Tensor,
        samples: Tensor,
        filled: Tensor,
        is_positive: Tensor,
        temperature: float,
    ) -> None:
        self._rows = samples.flatten(0, 1)
        self._own_class = (torch.arange(len(queries), device=queries.device), classes)
        self._temperature = temperature
        logits = _products(queries / temperature, self._rows).unflatten(1, filled.shape)
        own_logits = logits[self._own_class]
        self.similarities = self._mean_cosines(logits, own_logits, filled, is_positive)
        log_negatives = self._keep_negatives(logits, filled)
        # -inf where there is no positive or no negative: a loss of zero and no pull.
        gaps = torch.where(is_positive, log_negatives.unsqueeze(1) - own_logits, -torch.inf)
        share = is_positive.sum(dim=1, keepdim=True).clamp(min=1).to(gaps.dtype).reciprocal()
        self.losses = (torch.logaddexp(gaps, gaps.new_zeros(())) * share).sum(dim=1)
        self._pulls = gaps.sigmoid() * share

    def gradients(self) -> Tensor:
        """Gradients of the losses with respect to their queries, ``(R, C)``; to be called once."""
        # d loss / d logit: a negative gets its share of the softmax over negatives, times what all
        # positives are pulled with; a positive is pulled on its own.
        scale = self._pulls.sum(dim=1) / self._total.clamp(min=1)
        weights = self._scores.mul_(scale.view(-1, 1, 1))
        weights[self._own_class] = -self._pulls
        return _weighted_sums(weights.flatten(1), self._rows) / self._temperature

    def _mean_cosines(
        self, logits: Tensor, own_logits: Tensor, filled: Tensor, is_positive: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Samples that are not filled are zeros and add nothing to the sum over all.
        num_filled = filled.sum(dim=1)
        num_negatives = num_filled.sum() - num_filled[self._own_class[1]]
        negative = (logits.sum(dim=(1, 2)) - own_logits.sum(dim=1)) / num_negatives.clamp(min=1)
        positive = (own_logits * is_positive).sum(dim=1) / is_positive.sum(dim=1).clamp(min=1)
        return positive * self._temperature, negative * self._temperature

    def _keep_negatives(self, logits: Tensor, filled: Tensor) -> Tensor:
        """Turns logits into exponentials in place, zero where not negative; returns ``log S``, (R,)."""
        logits.masked_fill_(~filled, -torch.inf)
        logits[self._own_class] = -torch.inf
        top = logits.amax(dim=(1, 2))
        top = torch.where(top.isfinite(), top, 0.0)
        self._scores = logits.sub_(top.view(-1, 1, 1)).exp_()
        # At least 1, or 0 without a negative.
        self._total = self._scores.sum(dim=(1, 2))
        return top + self._total.log()


def _products(queries: Tensor, rows: Tensor) -> Tensor:
    """``(R, M)`` products of queries ``(R, C)`` with rows ``(M, C)``, in the type of the queries."""
    products = queries.new_empty(len(queries), len(rows))
    length = _piece_length(rows)
    for piece, columns in zip(rows.split(length), products.split(length, dim=1), strict=True):
        torch.mm(queries, piece.to(queries.dtype).t(), out=columns)
    return products


def _weighted_sums(weights: Tensor, rows: Tensor) -> Tensor:
    """``(R, C)`` sums of rows ``(M, C)`` with weights ``(R, M)``, in the type of the weights."""
    sums = weights.new_zeros(len(weights), rows.shape[1])
    length = _piece_length(rows)
    for piece, columns in zip(rows.split(length), weights.split(length, dim=1), strict=True):
        sums.addmm_(columns, piece.to(weights.dtype))
    return sums


def _piece_length(rows: Tensor) -> int:
    """Rows to multiply and, if they are of another type, to convert at a time.

    A copy of a whole half-precision bank would undo what half precision saves. On the CPU a piece also
    stays in the cache.
    """
    return _ROWS_A_PIECE if rows.device.type == "cpu" else 32 * _ROWS_A_PIECE
