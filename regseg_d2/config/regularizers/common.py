"""Keys that every method has."""

from __future__ import annotations

from detectron2.config import CfgNode


def common_defaults(weight: float) -> CfgNode:
    """Returns the keys that every method has.

    Args:
        weight: the paper's weight of the method's losses.
    """
    node = CfgNode()
    # Multiplies all losses of the method.
    node.WEIGHT = weight
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
    return node
