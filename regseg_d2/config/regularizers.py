"""Keys of the regularizers: those of a method are the arguments of its constructor."""

from __future__ import annotations

import inspect
from typing import Any

from detectron2.config import CfgNode

from regseg_d2.regularizers import REGULARIZER, Regularizer

# What a constructor gets from keys that are not the method's own.
_FROM_ELSEWHERE = ("seed",)


def add_regularizer_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.REGULARIZERS``, with a section for each method that is registered.

    A name may carry a place, as in ``PNE@aux``: the same method once more, at another classifier. Its
    section ``MODEL.REGULARIZERS.PNE@aux`` holds only the keys that differ from those of ``PNE``.
    """
    node = cfg.MODEL.REGULARIZERS = CfgNode()
    # Which regularizers to train with, by name; the order does not matter. [] is the baseline.
    node.NAMES = []
    # Iterations between two records of the regularizers' diagnostics.
    node.DIAGNOSTICS_PERIOD = 20
    # Warn when a loss has been exactly zero for so many training forwards in a row; 0 never warns.
    node.WARN_ZERO_STEPS = 200
    # How labels come down to the size of a feature. center: the pixel at the center of a cell, where the
    # network's predictions sit. corner: the cell's first pixel, half a stride off (published codes).
    # majority: the class of most of the cell's valid pixels.
    node.LABELS = "center"
    # majority: a cell is void where its class holds less than this share of its pixels, void ones among
    # them. In [0, 1].
    node.LABEL_PURITY = 0.5
    # Iterations in which the regularizers alone train, before the network's own losses set in (contrast as a
    # pre-training: Zhao et al., ICCV 2021). 0: none.
    node.PRETRAIN_ITERS = 0
    for name, method in REGULARIZER:
        node[name] = method_section(method)
    # The next three are read by the stage MODEL.SEM_SEG_HEAD.AUGMENT: MDRL only.
    # eta of Eq. 18, weight of the cross entropy of the base prediction (Eq. 16). Sane: 0 to 1.
    node.MDRL.BASE_LOSS_WEIGHT = 0.4
    # What the context module reads: R, of which Eq. 3 takes the context R_il, or the "backbone"'s feature, as
    # R does. Checkpoints of the one do not fit the other.
    node.MDRL.CONTEXT_READS = "R"
    # Z, channels of R and of a distribution; even. 0 is the number of channels that the context module
    # puts out. The paper gives no number; the work it builds on (MCIBI) has 512.
    node.MDRL.CHANNELS = 0


def method_section(method: type[Regularizer]) -> CfgNode:
    """Returns the keys of a method with their defaults.

    What they mean, and which values are sane, is in the docstring of the method's constructor.
    """
    node = CfgNode()
    # Multiplies all losses of the method. Where there are several, <TERM>_WEIGHT is that of one of them, and
    # 0 switches it off.
    node.WEIGHT = 1.0
    for term, weight in method.terms.items():
        node[_weight_key(method, term)] = weight
    # Module path of the classifier (a 1x1 convolution) whose input is the penultimate feature and whose
    # output are the logits. "auto": sem_seg_head.predictor; for a name with the place @aux the
    # auxiliary head's.
    node.CLASSIFIER = "auto"
    # Tap of the regularized feature; "auto" is the place that the method's paper names. Where that is the
    # penultimate feature, it is taken before the dropout that the head has in front of the classifier:
    # sem_seg_head.dropout:in. The feature behind the dropout is sem_seg_head.predictor:in.
    node.FEATURES = "auto"
    # Iterations before the losses have their full weight; constant: no loss before, linear: growing.
    node.WARMUP_ITERS = 0
    node.WARMUP_METHOD = "constant"
    # Iterations after which the losses end, for a method that shall only prepare the features (see
    # PRETRAIN_ITERS); 0: never.
    node.UNTIL_ITER = 0
    for argument, default in method_options(method).items():
        node[key_of(method, argument)] = default
    return node


def method_options(method: type[Regularizer]) -> dict[str, Any]:
    """Returns the method's own arguments that have a key, with their defaults: numbers, switches, names."""
    options: dict[str, Any] = {}
    for owner in method.__mro__[: method.__mro__.index(Regularizer)]:
        for parameter in inspect.signature(owner).parameters.values():
            is_option = parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _FROM_ELSEWHERE
            if is_option and isinstance(parameter.default, (bool, int, float, str)):
                options.setdefault(parameter.name, parameter.default)
    return options


def key_of(method: type[Regularizer], argument: str) -> str:
    """Returns the key, in the method's section, of an argument of its constructor."""
    return method.config_keys.get(argument, argument.upper())


def method_weights(method: type[Regularizer], section: CfgNode) -> dict[str, float]:
    """Returns the weight of each loss term, as a method's section says."""
    if len(method.terms) == 1:
        return dict.fromkeys(method.terms, section.WEIGHT)
    return {term: section.WEIGHT * section[_weight_key(method, term)] for term in method.terms}


def _weight_key(method: type[Regularizer], term: str) -> str:
    return "WEIGHT" if len(method.terms) == 1 else f"{term.upper()}_WEIGHT"
