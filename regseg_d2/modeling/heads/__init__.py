"""Heads: one base, one context module a file."""

from regseg_d2.modeling.heads.augments.mdrl import MDRL as MDRLStage
from regseg_d2.modeling.heads.context_head import ContextHead
from regseg_d2.modeling.heads.contexts.aspp import ASPP
from regseg_d2.modeling.heads.contexts.caa import ChannelizedAxialAttention
from regseg_d2.modeling.heads.contexts.ccnet import CrissCross
from regseg_d2.modeling.heads.contexts.cpnet import ContextPrior
from regseg_d2.modeling.heads.contexts.danet import DualAttention
from regseg_d2.modeling.heads.contexts.encnet import Encoding
from regseg_d2.modeling.heads.contexts.fcn import FCN, FCNAuxiliary
from regseg_d2.modeling.heads.contexts.non_local import NonLocal
from regseg_d2.modeling.heads.contexts.ocr import OCR
from regseg_d2.modeling.heads.contexts.psp import PPM
from regseg_d2.modeling.heads.contexts.self_attention import SelfAttention
from regseg_d2.modeling.heads.fusions.concat import Concat
from regseg_d2.modeling.heads.fusions.jpu import JPU
from regseg_d2.modeling.heads.fusions.segformer import MLPFusion
from regseg_d2.modeling.heads.fusions.semantic_fpn import SemanticFPN
from regseg_d2.modeling.heads.fusions.upernet import UPerFPN
from regseg_d2.modeling.heads.projections import (
    ConvBlock,
    LinearConvBlock,
    Norm,
    NormLinear,
    SeparableConvBlock,
)
from regseg_d2.modeling.heads.registries import AUGMENT, CONTEXT_MODULE, FUSION, PROJECTION

__all__ = [
    "ChannelizedAxialAttention",
    "CrissCross",
    "DualAttention",
    "NonLocal",
    "SelfAttention",
    "FUSION",
    "SemanticFPN",
    "UPerFPN",
    "MLPFusion",
    "JPU",
    "Concat",
    "ASPP",
    "AUGMENT",
    "CONTEXT_MODULE",
    "ContextHead",
    "ContextPrior",
    "ConvBlock",
    "Encoding",
    "FCNAuxiliary",
    "FCN",
    "MDRLStage",
    "OCR",
    "PPM",
    "LinearConvBlock",
    "Norm",
    "NormLinear",
    "SeparableConvBlock",
    "PROJECTION",
]
