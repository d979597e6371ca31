"""Keys of RCH."""

from __future__ import annotations

from detectron2.config import CfgNode

from regseg_d2.config.regularizers.common import common_defaults


def rch_defaults() -> CfgNode:
    """RCH (Wang et al., AAAI 2022). Paper value = default, unless a comment says otherwise."""
    # FEATURES "auto": the encoder's output (the paper): all stages where the head's fusion has them side by
    # side (sem_seg_head.fusion:out; MLPFusion, Concat), else the last one, such as "backbone:out[res5]".
    # Where CLASSIFIER is not "auto", the penultimate feature of its head. The published code takes the
    # classifier's input: sem_seg_head.predictor:in. WEIGHT is lambda of Eq. 9; 0.1 to 0.4 do alike in
    # Figure 4. WARMUP_ITERS: the paper has no RCH while SegFormer warms up.
    rch = common_defaults(weight=0.1)
    # D: channels of the embedding E, made by a 1x1 convolution and norm that exist in training only. The
    # paper gives no number, the published code keeps the head's (512 for OCRNet). Sane: 64 to 512.
    rch.CHANNELS = 256
    # rho of Eq. 4: share of the old prototype in the new one. 0.8 and 0.9 are best in Figure 4.
    rch.EMA_DECAY = 0.9
    # tau of Eq. 8; 0.25 to 0.5 in Figure 4. Sane: 0.1 to 1.
    rch.TEMPERATURE = 0.5
    # What a prototype is (Table 1). tp: the moving average of the correctly classified pixels, gt: that
    # of all pixels of the class, learned: a parameter.
    rch.PROTOTYPES = "tp"
    # psi of Eq. 6: pushes a pixel away from those that were taken for its class (Table 1, column FP).
    rch.FP_PENALTY = True
    # phi of Eq. 7: pulls a pixel to the missed ones of its class (Table 1, column FN).
    rch.FN_COMPENSATION = True
    # The FN and FP pixels of its class that psi and phi compare a pixel with are those of its own image
    # (image; the paper's "pixels of the input image") or of the batch of all processes (batch). The
    # published code pools the images of a GPU.
    rch.ERRORS = "image"
    # Factor of both terms in Eq. 8. The published code's numbers amount to 0.25. Sane: 0 to 1.
    rch.CALIBRATION_SCALE = 1.0
    # No gradient through the prototypes (published code); False: through this batch's share of Eq. 4.
    rch.DETACH_PROTOTYPES = False
    return rch
