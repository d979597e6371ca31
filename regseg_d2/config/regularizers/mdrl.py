"""Keys of MDRL."""

from __future__ import annotations

from detectron2.config import CfgNode

from regseg_d2.config.regularizers.common import common_defaults


def mdrl_defaults() -> CfgNode:
    """MDRL (Yin et al.): keys of its two losses, and of the stage MODEL.SEM_SEG_HEAD.AUGMENT: MDRL.

    Default = paper value, unless a comment says otherwise. There is no published code.
    """
    # FEATURES "auto": R, the feature that the head's MDRL stage compares with its memory, where the head
    # has that stage; else the classifier's input. WEIGHT, sane: 0.1 to 5.
    mdrl = common_defaults(weight=1.0)
    # alpha of Eq. 18, weight of the class local consistency loss (Eq. 14); 0 switches it off (Table 3).
    # Table 4 has 0.01 and 0.02. Sane: 0 to 1.
    mdrl.LOCAL_WEIGHT = 0.01
    # beta of Eq. 18, weight of the class global consistency loss (Eq. 15); 0 switches it off (Table 3).
    # Table 4 has 0.01 to 0.45. Sane: 0 to 1.
    mdrl.GLOBAL_WEIGHT = 0.05
    # N, distributions per class: 1, 3 ... 15 in Table 2. Sane: 1 to 15; memory and time grow with K * N.
    mdrl.NUM_DISTRIBUTIONS = 9
    # mu of Eq. 8, share of the old distribution in the new one. Sane: 0.9 to 0.9999.
    mdrl.MOMENTUM = 0.999
    # Iterations of the clustering (Eq. 7). The paper says "few"; 3 as in the work it follows (Zhou et al.,
    # CVPR 2022). Sane: 1 to 10.
    mdrl.SINKHORN_ITERS = 3
    # lambda of Eq. 6: smaller assigns more sharply. The paper gives no value; 0.05 as in Zhou et al. Sane:
    # 0.01 to 0.5; at least 0.005.
    mdrl.SINKHORN_LAMBDA = 0.05
    # tau of Eq. 15. Sane: 0.05 to 1; at least 0.02.
    mdrl.TEMPERATURE = 0.5
    # The next three are read by the head's stage only.
    # eta of Eq. 18, weight of the cross entropy of the base prediction (Eq. 16). Sane: 0 to 1.
    mdrl.BASE_LOSS_WEIGHT = 0.4
    # What the context module reads: R, of which Eq. 3 takes the context R_il, or the "backbone"'s feature, as
    # R does. Checkpoints of the one do not fit the other.
    mdrl.CONTEXT_READS = "R"
    # Z, channels of R and of a distribution; even. 0 is the number of channels that the context module
    # puts out. The paper gives no number; the work it builds on (MCIBI) has 512.
    mdrl.CHANNELS = 0
    return mdrl
