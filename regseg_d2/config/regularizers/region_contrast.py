"""Keys of RegionContrast."""

from __future__ import annotations

from detectron2.config import CfgNode

from regseg_d2.config.regularizers.common import common_defaults


def region_contrast_defaults() -> CfgNode:
    """RegionContrast (Hu et al., ICCV 2021). Paper value = default, unless a comment says otherwise."""
    # beta of Eq. 5. Sane: 0.01 to 1. FEATURES "auto": the classifier's input (F of section 3.2.1).
    node = common_defaults(weight=0.1)
    # R_i, the center of the region of class i in an image (Table 2). dynamic: Eq. 3 ("Weighted EP +
    # HP"), gt_mean: mean over the pixels labelled i ("EP + HP"), predicted: mean over the pixels
    # predicted as i, Eq. 2 ("Direct Average"; the published code builds its centers from predictions).
    node.CENTER = "dynamic"
    # Region centers kept of each class, |M_i|. The paper keeps as many as there are training images
    # (D: 2975 for Cityscapes) and compares 0, 1000 and 2000 in Table 3; 1000 here, as it suits every
    # data set. 0: no bank, the other regions of the batch (of all processes) are the samples
    # ("intra-image", Table 1). Memory: classes x size x channels x 4 bytes on each process, which is
    # 3 GB for 150 classes, 10,000 regions and 512 channels. Sane: 100 to the number of training images.
    node.BANK_SIZE = 1000
    # Type that stored centers are kept in: float32, or float16, which halves the memory.
    node.BANK_DTYPE = "float32"
    # tau of Eq. 4; the paper gives no value, this is the published code's. Sane: 0.05 to 1;
    # at least 0.025.
    node.TEMPERATURE = 0.2
    # How the losses of regions add up, about which the paper is silent. mean: over all regions of the
    # batch of all processes. class_sum: over the regions of each class, then summed over the classes (the
    # published code sums over those of a GPU's batch); larger about by the number of classes in the batch.
    node.REDUCTION = "mean"
    return node
