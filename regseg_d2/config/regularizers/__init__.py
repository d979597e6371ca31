"""Keys of the regularizers, one method a file."""

from __future__ import annotations

from detectron2.config import CfgNode

from regseg_d2.config.regularizers.car import car_defaults
from regseg_d2.config.regularizers.contrast_seg import contrast_seg_defaults
from regseg_d2.config.regularizers.mdrl import mdrl_defaults
from regseg_d2.config.regularizers.pne import pne_defaults
from regseg_d2.config.regularizers.rch import rch_defaults
from regseg_d2.config.regularizers.region_contrast import region_contrast_defaults


def add_regularizer_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.REGULARIZERS``, with a section for each method.

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
    node.CAR = car_defaults()
    node.RegionContrast = region_contrast_defaults()
    node.RCH = rch_defaults()
    node.PNE = pne_defaults()
    node.MDRL = mdrl_defaults()
    node.ContrastSeg = contrast_seg_defaults()
