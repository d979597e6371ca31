"""Which of mmsegmentation's heads and necks a checkpoint has, told by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MODELS = "configs/_base_/models/"
_TRANSFORMERS = "MODEL.META_ARCHITECTURE: HuggingFaceSegmentor with MODEL.HUGGINGFACE.MODEL_TYPE"

#: Pattern of a name, the kind it tells (the first that matches counts), and what is the same network here; ""
#: is nothing.
KINDS: list[tuple[str, str, str]] = [
    (
        r"decode_head\.sep_bottleneck\.",
        "DepthwiseSeparableASPPHead",
        f"{_MODELS}deeplabv3plus_resnet50_mmseg.yaml",
    ),
    (r"decode_head\.scale_heads\.", "FPNHead", f"{_MODELS}semantic_fpn_resnet50_mmseg.yaml"),
    (r"decode_head\.(?:1\.)?object_context_block\.", "OCRHead", "MODEL.SEM_SEG_HEAD.CONTEXT: OCR"),
    (r"decode_head\.fpn_bottleneck\.", "UPerHead", "MODEL.SEM_SEG_HEAD.FUSION: UPerFPN"),
    (r"decode_head\.fusion_conv\.", "SegformerHead", "MODEL.SEM_SEG_HEAD.FUSION: MLPFusion"),
    (r"decode_head\.psp_modules\.", "PSPHead", "MODEL.SEM_SEG_HEAD.CONTEXT: PPM"),
    (
        r"decode_head\.aspp_modules\.",
        "ASPPHead",
        "MODEL.SEM_SEG_HEAD.CONTEXT: ASPP with ASPP_NARROW: False",
    ),
    (r"decode_head\.enc_module\.", "EncHead", "MODEL.SEM_SEG_HEAD.CONTEXT: Encoding"),
    (r"decode_head\.cca\.", "CCHead", "MODEL.SEM_SEG_HEAD.CONTEXT: CrissCross with CONCAT_INPUT: True"),
    (r"decode_head\.pam\.", "DAHead", "MODEL.SEM_SEG_HEAD.CONTEXT: DualAttention"),
    (r"decode_head\.nl_block\.", "NLHead", "MODEL.SEM_SEG_HEAD.CONTEXT: NonLocal with CONCAT_INPUT: True"),
    (r"decode_head\.query_feat\.", "Mask2FormerHead", f"{_TRANSFORMERS}: mask2former"),
    (
        r"decode_head\.pixel_decoder\.encoder_in_proj\.",
        "MaskFormerHead with its TransformerEncoderPixelDecoder",
        "",
    ),
    (r"decode_head\.query_embed\.", "MaskFormerHead", f"{_TRANSFORMERS}: maskformer"),
    (r"decode_head\.kernel_(?:update|generate)_head\.", "IterativeDecodeHead (K-Net)", ""),
    (r"decode_head\.cls_emb$", "SegmenterMaskTransformerHead", ""),
    (r"decode_head\.ema_module\.", "EMAHead", ""),
    (r"decode_head\.gc_block\.", "GCHead", ""),
    (r"decode_head\.dnl_block\.", "DNLHead", ""),
    (r"decode_head\.dcm_modules\.", "DMHead", ""),
    (r"decode_head\.acm_modules\.", "APCHead", ""),
    (r"decode_head\.attention\.\d", "PSAHead", ""),
    (r"decode_head\.global_relation\.", "ISAHead", ""),
    (r"decode_head\.(?:fusion|context)\.stages\.", "ANNHead", ""),
    (r"decode_head\.hamburger\.", "LightHamHead", ""),
    (r"decode_head\.conv_ups\.", "LRASPPHead", ""),
    (r"decode_head\.reassemble_blocks\.", "DPTHead", ""),
    (r"decode_head\.up_convs\.", "SETRUPHead or SETRMLAHead", ""),
    (r"decode_head\.\d\.fcs\.", "PointHead", ""),
    (r"decode_head\.side_adapter_network\.", "SideAdapterCLIPHead", ""),
    (r"decode_head\.i_head\.", "PIDHead", ""),
    (r"decode_head\.convs\.\d+\.depthwise_conv\.", "DepthwiseSeparableFCNHead", ""),
    (r"neck\.cff_24\.", "ICNeck", ""),
    (r"neck\.upsample_4x\.", "Feature2Pyramid", ""),
    (r"neck\.mla\.", "MLANeck", ""),
    (r"neck\.convs\.", "MultiLevelNeck", ""),
    (r"neck\.lateral_convs\.", "FPN without its FPNHead", ""),
    (r"decode_head\.lateral_convs\.", "head of lateral_convs", ""),
]

#: Pattern of a name, and what it tells that transformers' Mask2Former and MaskFormer cannot be.
_NOT_IN_TRANSFORMERS: list[tuple[str, str]] = [
    (
        r"panoptic_head\.",
        "mmdetection's panoptic_head, for num_things_classes and num_stuff_classes; expected "
        "mmsegmentation's decode_head",
    ),
    (
        r"decode_head\.transformer_decoder\.layers\.\d+\.attentions\.",
        "mmsegmentation's MaskFormerHead or Mask2FormerHead in the names of its release candidates, which it "
        "does not read any more; expected a file that it publishes now",
    ),
    (
        r"decode_head\.pixel_decoder\.encoder_in_proj\.",
        "mmsegmentation's MaskFormerHead with its TransformerEncoderPixelDecoder; expected PixelDecoder",
    ),
    *[
        (rf"(?:backbone\.)?{pattern}", f"mmsegmentation's {kind}; expected ResNet or SwinTransformer")
        for pattern, kind in [
            (r"layer1\.0\.conv2\.fc1\.", "ResNeSt"),
            (r"stem\.0\.weight$", "ResNetV1c or ResNetV1d, with three convolutions in the stem"),
            (r"transition1\.", "HRNet"),
            (r"layers\.0\.0\.projection\.", "MixVisionTransformer"),
            (r"layers\.0\.(?:ln1|norm1)\.", "VisionTransformer, BEiT or MAE"),
            (r"downsample_layers\.", "ConvNeXt"),
            (r"absolute_pos_embed$", "SwinTransformer with use_abs_pos_embed"),
        ]
    ],
]


def not_in_transformers(names: Iterable[str]) -> str:
    """Says what of transformers' Mask2Former and MaskFormer there is no place for; "" where all has one."""
    names = list(names)
    return next(
        (kind for pattern, kind in _NOT_IN_TRANSFORMERS if any(re.match(pattern, name) for name in names)), ""
    )


def describe_head(names: Iterable[str]) -> str:
    """Says whose head or neck the names are, and what it is here; "" where they do not tell."""
    names = list(names)
    for pattern, kind, here in KINDS:
        if any(re.match(pattern, name) for name in names):
            if here:
                return f"this is mmsegmentation's {kind}, which here is {here}"
            return f"not supported: this is mmsegmentation's {kind}"
    return ""
