"""Networks that classify masks, seen pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor

#: Scores below are brought to it before the logarithm: an empty pixel has a finite logit.
SMALLEST_SCORE = 1e-6


@torch.no_grad()
def dense_logits(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Logits of pixels out of classified masks: ``log(sum_q softmax(c_q)[k] * sigmoid(m_q))``.

    The sum is the semantic score of MaskFormer (Cheng et al., NeurIPS 2021, section 3.4, semantic inference);
    the softmax of what is returned is that score, normalized over the classes.

    Args:
        class_logits: ``(N, Q, K + 1)`` logits of Q queries; the last class is "no object".
        mask_logits: ``(N, Q, h, w)`` logits of their masks.

    Returns:
        ``(N, K, h, w)``, float32 or better, without gradient.
    """
    precision = torch.promote_types(class_logits.dtype, torch.float32)
    with torch.autocast(class_logits.device.type, enabled=False):
        classes = class_logits.to(precision).softmax(dim=-1)[..., :-1]
        masks = mask_logits.to(precision).sigmoid()
        scores = torch.bmm(classes.transpose(1, 2), masks.flatten(2))
        return scores.clamp_(min=SMALLEST_SCORE).log_().unflatten(2, mask_logits.shape[-2:])
