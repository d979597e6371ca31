"""Where a network of Detectron2 and the regularizers meet; importing this registers all networks."""

import regseg_d2.modeling  # noqa: F401  registers backbones and heads
from regseg_d2.segmentor.huggingface import HuggingFaceSegmentor
from regseg_d2.segmentor.meta_architecture import RegularizationMixin, RegularizedSegmentor
from regseg_d2.segmentor.variants import regularized

__all__ = ["HuggingFaceSegmentor", "RegularizationMixin", "RegularizedSegmentor", "regularized"]
