"""The inference model: regularizers and auxiliary heads gone, linear convolutions folded."""

from __future__ import annotations

import copy
from typing import Literal

from torch import nn

from regseg_d2.modeling.heads.projections import LinearConvBlock, NormLinear
from regseg_d2.segmentor.meta_architecture import RegularizationMixin


def without_regularizers(model: nn.Module) -> nn.Module:
    """Returns a model without its regularizers; all other modules are shared with it."""
    result = copy.copy(model)
    result._modules = {name: part for name, part in model._modules.items() if name != "regularizers"}
    if isinstance(result, RegularizationMixin):
        result.add_regularizers({})
    return result


def inference_model(model: nn.Module, *, fold: Literal["all", "possible", "none"] = "all") -> nn.Module:
    """Makes the model that is deployed out of one that was trained.

    Args:
        model: a ``RegularizedSegmentor``, or any model with parts of this package. It is not changed.
        fold: which linear convolutions are folded: "all", and one that cannot be folded exactly is an error;
            those for which it is "possible"; or "none", and the output is the model's, bit for bit.

    Returns:
        A copy in eval mode without regularizers, and without an auxiliary head that no context module
        reads. With ``fold`` each ``LinearConvBlock`` is one convolution and a ``NormLinear`` the norm alone,
        its convolution merged into the classifier; its output differs from the model's by rounding only.

    Raises:
        ValueError: if a linear convolution cannot be folded exactly, see ``LinearConvBlock.fold``.
    """
    model = copy.deepcopy(without_regularizers(model)).eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, LinearConvBlock) and (fold == "all" or (fold == "possible" and module.folds)):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.fold())
        elif fold != "none" and isinstance(module, NormLinear):
            head = model.get_submodule(name.rpartition(".")[0])
            head.projection, head.predictor = module.fold(head.predictor)
        # A context module may read the auxiliary head's logits.
        reads_it = getattr(getattr(module, "context", None), "reads_coarse_logits", False)
        if getattr(module, "auxiliary", None) is not None and not reads_it:
            module.auxiliary = None
    return model
