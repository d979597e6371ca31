"""The inference model: regularizers and auxiliary heads gone, linear convolutions folded."""

from __future__ import annotations

import copy

from torch import nn

from regseg_d2.modeling.heads.projections import LinearConvBlock, NormLinear
from regseg_d2.segmentor.meta_architecture import RegularizationMixin


def inference_model(model: nn.Module, *, must_fold: bool = True) -> nn.Module:
    """Makes the model that is deployed out of one that was trained.

    Args:
        model: a ``RegularizedSegmentor``, or any model with parts of this package. It is not changed.
        must_fold: refuse a linear convolution that cannot be folded exactly; else it stays.

    Returns:
        A copy in eval mode without regularizers, and without an auxiliary head that no context module
        reads, in which each ``LinearConvBlock`` is one convolution and a ``NormLinear`` the norm alone, its
        convolution merged into the classifier. Its output differs from the model's by rounding only.

    Raises:
        ValueError: if a linear convolution cannot be folded exactly, see ``LinearConvBlock.fold``.
    """
    model = copy.deepcopy(model).eval()
    if isinstance(model, RegularizationMixin):
        model.add_regularizers({})
    for name, module in list(model.named_modules()):
        if isinstance(module, LinearConvBlock) and (must_fold or module.folds):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.fold())
        elif isinstance(module, NormLinear):
            head = model.get_submodule(name.rpartition(".")[0])
            head.projection, head.predictor = module.fold(head.predictor)
        # A context module may read the auxiliary head's logits.
        reads_it = getattr(getattr(module, "context", None), "reads_coarse_logits", False)
        if getattr(module, "auxiliary", None) is not None and not reads_it:
            module.auxiliary = None
    return model
