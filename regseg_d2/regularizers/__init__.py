"""Regularizers: losses on features that exist in training only, one method a file."""

from regseg_d2.regularizers.attach import Regularized, attach
from regseg_d2.regularizers.base import REGULARIZER, Regularizer
from regseg_d2.regularizers.car import CAR
from regseg_d2.regularizers.contrast_seg import ContrastSeg
from regseg_d2.regularizers.inputs import LabelSampling, RegularizerInput
from regseg_d2.regularizers.mdrl import MDRL
from regseg_d2.regularizers.pne import PNE
from regseg_d2.regularizers.rch import RCH
from regseg_d2.regularizers.region_contrast import RegionContrast
from regseg_d2.regularizers.regularizer_list import RegularizerList

__all__ = [
    "CAR",
    "ContrastSeg",
    "LabelSampling",
    "MDRL",
    "PNE",
    "RCH",
    "REGULARIZER",
    "RegionContrast",
    "Regularized",
    "Regularizer",
    "RegularizerInput",
    "RegularizerList",
    "attach",
]
