"""Heads: one base, one context module a file."""

from regseg_d2.modeling.heads.aspp import ASPP
from regseg_d2.modeling.heads.caa import ChannelizedAxialAttention
from regseg_d2.modeling.heads.ccnet import CrissCross
from regseg_d2.modeling.heads.concat import Concat
from regseg_d2.modeling.heads.context_head import ContextHead
from regseg_d2.modeling.heads.cpnet import ContextPrior
from regseg_d2.modeling.heads.danet import DualAttention
from regseg_d2.modeling.heads.encnet import Encoding
from regseg_d2.modeling.heads.fcn import FCN, FCNAuxiliary
from regseg_d2.modeling.heads.jpu import JPU
from regseg_d2.modeling.heads.mdrl import MDRL as MDRLStage
from regseg_d2.modeling.heads.non_local import NonLocal
from regseg_d2.modeling.heads.ocr import OCR
from regseg_d2.modeling.heads.projections import ConvBlock, LinearConvBlock, SeparableConvBlock
from regseg_d2.modeling.heads.psp import PPM
from regseg_d2.modeling.heads.registries import AUGMENT, CONTEXT_MODULE, FUSION, PROJECTION
from regseg_d2.modeling.heads.segformer import MLPFusion
from regseg_d2.modeling.heads.self_attention import SelfAttention
from regseg_d2.modeling.heads.semantic_fpn import SemanticFPN
from regseg_d2.modeling.heads.upernet import UPerFPN

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
    "SeparableConvBlock",
    "PROJECTION",
]
