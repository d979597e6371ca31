"""Networks that classify masks, seen pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

#: Scores below are brought to it before the logarithm: an empty pixel has a finite logit.
SMALLEST_SCORE = 1e-6


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Scores of pixels out of classified masks: ``sum_q softmax(c_q)[k] * sigmoid(m_q)``.

    That is the semantic inference of MaskFormer (Cheng et al., NeurIPS 2021, section 3.4).

    Args:
        class_logits: ``(N, Q, K + 1)`` logits of Q queries; the last class is "no object".
        mask_logits: ``(N, Q, h, w)`` logits of their masks.

    Returns:
        ``(N, K, h, w)``.
    """
    classes = class_logits.softmax(dim=-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", classes, mask_logits.sigmoid())


@torch.no_grad()
def dense_logits(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Logits of pixels out of classified masks: the logarithm of their :func:`semantic_scores`.

    The softmax of what is returned is those scores, normalized over the classes.

    Args:
        class_logits: ``(N, Q, K + 1)``.
        mask_logits: ``(N, Q, h, w)``.

    Returns:
        ``(N, K, h, w)``, float32 or better, without gradient.
    """
    precision = torch.promote_types(class_logits.dtype, torch.float32)
    with torch.autocast(class_logits.device.type, enabled=False):
        scores = semantic_scores(class_logits.to(precision), mask_logits.to(precision))
        return scores.clamp_(min=SMALLEST_SCORE).log_()
