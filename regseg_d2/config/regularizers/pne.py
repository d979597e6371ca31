"""Keys of PNE."""

from __future__ import annotations

from detectron2.config import CfgNode

from regseg_d2.config.regularizers.common import common_defaults


def pne_defaults() -> CfgNode:
    """PNE (Wang et al.). Paper value = default, unless a comment says otherwise."""
    # FEATURES "auto": the classifier's input. WEIGHT is alpha of Eq. 4: 1.3, Table 8 tries 0.4 to 2.3.
    pne = common_defaults(weight=1.3)
    # tau of Eq. 8. Table 8 tries 0.1 to 10; at 0.1 the paper's network did not learn. Sane: 0.3 to 2.
    pne.TEMPERATURE = 1.0
    # Channels of the projection (1x1 convolution, norm, ReLU, 1x1 convolution) whose unit vectors are
    # contrasted. Training only. Sane: 64 to 512.
    pne.CHANNELS = 256
    # |P| = |N|: positives of an anchor, and negatives; with replacement where there are fewer. The paper
    # gives no number, the published code takes 100. Sane: 20 to 500.
    pne.NUM_SAMPLES = 100
    # |S|: anchors of one set (a pair of true and predicted class) at most; more are drawn from at random.
    # The paper: fewer than 200. The published code leaves a pair with more out. Sane: 20 to 1000.
    pne.MAX_ANCHORS = 200
    # What anchors and samples are drawn from: image (paper), or batch (of all processes).
    pne.SCOPE = "image"
    # pne: Eq. 8. asymmetric: Eq. 1, without POSITIVE_WEIGHTS (Tables 5 and 6).
    pne.CONTRAST = "pne"
    # w of Eq. 8: the softmax probability of the positive, its logit (one below 0 counts as 0), or none
    # (Table 7).
    pne.POSITIVE_WEIGHTS = "softmax"
    # Misclassified pixels of one class are a set of anchors for each class that they are predicted as
    # (section 3.3.1); False: one set, whatever they are predicted as (Table 6, column IAS).
    pne.INDIVIDUAL_ANCHOR_SETS = True
    # Negatives of a set are right pixels of the classes that the set's pixels are predicted as (section
    # 3.3.2); False: of all classes but the anchors' own (Table 6, column CN).
    pne.CORRESPONDING_NEGATIVES = True
    # A set without a negative (no right pixel of the predicted class). skip: its anchors have loss 0 and
    # count in the mean, as Eq. 9 has it. exclude: they do not count either. anchors: they are their own
    # negatives (published code), which pushes pixels of one class apart.
    pne.NO_NEGATIVES = "skip"
    # Positives and negatives are constants (published code; the paper does not say).
    pne.DETACH_SAMPLES = True
    return pne
