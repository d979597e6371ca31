"""Heads: one base, one context module a file."""

from regseg_d2.modeling.heads.aspp import ASPP
from regseg_d2.modeling.heads.context_head import ContextHead
from regseg_d2.modeling.heads.fcn import FCN, FCNAuxiliary
from regseg_d2.modeling.heads.mdrl import MDRL as MDRLStage
from regseg_d2.modeling.heads.projections import ConvBlock, LinearConvBlock
from regseg_d2.modeling.heads.psp import PPM
from regseg_d2.modeling.heads.registries import AUGMENT, CONTEXT_MODULE, PROJECTION

__all__ = [
    "ASPP",
    "AUGMENT",
    "CONTEXT_MODULE",
    "ContextHead",
    "ConvBlock",
    "FCNAuxiliary",
    "FCN",
    "MDRLStage",
    "PPM",
    "LinearConvBlock",
    "PROJECTION",
]
