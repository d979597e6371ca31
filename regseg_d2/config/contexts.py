"""Keys of the context modules and fusions, each of which reads those with its prefix."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_context_config(head: CfgNode) -> None:
    """Adds keys to ``MODEL.SEM_SEG_HEAD``."""
    # ASPP: True narrows the joined branches by a 1x1 block, as Detectron2 does; False leaves them for the
    # projection to mix, as mmsegmentation does.
    head.ASPP_NARROW = True
    # Side of that block's kernel, 1 or 3, and a norm in the image pooling (which is there without the block,
    # too): 3 and True in mmsegmentation's DeepLabV3+.
    head.ASPP_NARROW_KERNEL_SIZE = 1
    head.ASPP_POOLING_NORM = False
    # FCN: number of convolution blocks before the last one (which is the projection), and their kernel.
    head.FCN_NUM_CONVS = 1
    head.FCN_KERNEL_SIZE = 3
    # PPM: side of each grid that the feature is averaged over (PSPNet's four).
    head.PPM_POOL_SIZES = [1, 2, 3, 6]
    # Fusions: UPerFPN's levels have CONTEXT_CHANNELS channels, its pooling PPM_POOL_SIZES; Concat has no key.
    # SemanticFPN: its pyramid has FPN_CHANNELS channels (the paper's 256; 64 to 256), its output
    # CONTEXT_CHANNELS (the paper's 128).
    head.FPN_CHANNELS = 256
    # MLPFusion (SegFormer) brings each feature to CONTEXT_CHANNELS channels: True puts a norm and a ReLU on
    # that, as mmsegmentation does; False neither, as the paper does (Eq. 4).
    head.MLP_NORM = True
    # JPU (FastFCN): channels of its blocks and of each dilated branch (the paper's 512; 64 to 512), and the
    # branches' dilations (the paper's four).
    head.JPU_CHANNELS = 512
    head.JPU_DILATIONS = [1, 2, 4, 8]
    # OCR (which reads the logits of the auxiliary head): channels of its queries, keys and values (the
    # paper's 256, half of its CONTEXT_CHANNELS; 64 to 256).
    head.OCR_KEY_CHANNELS = 256
    # Mix a pixel's feature and what it gets of the regions by a 1x1 block (Eq. 11). False: PROJECTION does,
    # as CAR's LinearConvBlock in the published code of OCR + CAR.
    head.OCR_FUSE = True
    # Encoding (EncNet): number of codewords (the paper's 32; 8 to 64), and weight of the loss of which
    # classes an image has (the paper's 0.2; 0 is none).
    head.ENCNET_NUM_CODES = 32
    head.ENCNET_SE_LOSS_WEIGHT = 0.2
    # ContextPrior (CPNet): height and width of the grid of the prior: the crop divided by the feature's
    # stride is the published network (64 x 64 for 512 / 8; 24 to 96, the cost grows with the fourth power);
    # length of the aggregation's kernels (the paper's 11; 3 to 15, odd); weight of the affinity loss (the
    # paper's 1); which pixel of a cell of the grid gives it its label, the one at its "center" or the first
    # one ("corner").
    head.CPNET_SIZE = [64, 64]
    head.CPNET_KERNEL_SIZE = 11
    head.CPNET_AFFINITY_LOSS_WEIGHT = 1.0
    head.CPNET_LABELS = "center"
    # NonLocal: how many times fewer channels queries, keys and values have (the paper's 2; 1 to 8 is sane),
    # and whether their dot products are divided by the root of that number of channels.
    head.ATTENTION_REDUCTION = 2
    head.ATTENTION_USE_SCALE = True
    # SelfAttention: channels of query and key (CAR's 64; 16 to 256 is sane), and how the two are related:
    # shared (one convolution), shared_start (two with the same start, CAR's published code), separate.
    head.ATTENTION_KEY_CHANNELS = 64
    head.ATTENTION_QUERY_KEY = "shared"
    # CrissCross: number of passes R (the paper's 2, which see the whole image; 1 to 3 is sane).
    head.CCNET_RECURRENCE = 2
    # DualAttention: channels of the position attention's query and key (published code 64; 16 to 512 is
    # sane), and weight of the loss of each of the two side predictions (published 1; CAR's code 0.4; 0 is
    # none).
    head.DANET_KEY_CHANNELS = 64
    head.DANET_SIDE_LOSS_WEIGHT = 1.0
    # Last block of each of the two branches: ConvBlock, a 3x3 block (DANet), or LinearConvBlock, CAR's linear
    # convolution and 1x1 block (published code of DANet + CAR).
    head.DANET_LAST = "ConvBlock"
    # ChannelizedAxialAttention, values of the published code: channels of the keys, which are the queries
    # too (64); the gates (False is plain axial attention), their hidden layers (5; 0 to 7 is sane) and the
    # width of these over CONTEXT_CHANNELS (0.25); the image's mean beside the attention.
    head.CAA_KEY_CHANNELS = 64
    head.CAA_CHANNEL_GATES = True
    head.CAA_HIDDEN_LAYERS = 5
    head.CAA_HIDDEN_RATIO = 0.25
    head.CAA_IMAGE_LEVEL = True
