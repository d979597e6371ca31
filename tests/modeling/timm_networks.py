"""Thin timm networks of all families."""

import torch

from regseg_d2.modeling.backbones.timm import TimmBackbone

ALL = ["res2", "res3", "res4", "res5"]
SWIN = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2), "window_size": 4}
CONVNEXT = {"dims": (4, 8, 12, 16), "depths": (1, 1, 2, 1)}
RESNET = {"channels": (8, 8, 12, 16)}
VIT = {"embed_dim": 12, "num_heads": 2, "depth": 8, "img_size": 56}
BRANCHES = (2, 4, 6, 8)


def hrnet_stage(branches, block="BASIC"):
    return {
        **{"num_modules": 1, "num_branches": branches, "block_type": block, "fuse_method": "SUM"},
        **{"num_blocks": (1,) * branches, "num_channels": BRANCHES[:branches]},
    }


HRNET = {f"stage{i}": hrnet_stage(i, "BOTTLENECK" if i == 1 else "BASIC") for i in (1, 2, 3, 4)}

# Name, options, what timm needs besides them to be asked for the same, strides of res2 to res5.
NETWORKS = {
    "resnet": ("resnet10t", RESNET, {"out_indices": (1, 2, 3, 4)}, (4, 8, 16, 32)),
    "efficientnet": (
        "tf_efficientnet_lite0",
        {},
        {"out_indices": (1, 2, 3, 4)},
        (4, 8, 16, 32),
    ),
    "convnext": ("convnext_tiny", CONVNEXT, {}, (4, 8, 16, 32)),
    "swin": (
        "swin_tiny_patch4_window7_224",
        SWIN,
        {"strict_img_size": False, "always_partition": True},
        (4, 8, 16, 32),
    ),
    "hrnet": (
        "hrnet_w18",
        HRNET,
        {"feature_location": "", "out_indices": (1, 2, 3, 4)},
        (4, 8, 16, 32),
    ),
    "dinov2": (
        "vit_small_patch14_dinov2",
        VIT,
        {"dynamic_img_size": True, "out_indices": (1, 3, 5, 7)},
        (14, 14, 14, 14),
    ),
    "regnet": ("regnety_002", {}, {"out_indices": (1, 2, 3, 4)}, (4, 8, 16, 32)),
}


def build(kind, **arguments):
    name, options, _, _ = NETWORKS[kind]
    return TimmBackbone(
        **{"name": name, "output_stride": 32, "out_features": ALL, "options": options, **arguments}
    )


def randomise(network):
    """Norms and layer scales that are not the identity, and residual branches that are not zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
            elif name.endswith("running_var") or (value.dim() == 1 and value.is_floating_point()):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return network
