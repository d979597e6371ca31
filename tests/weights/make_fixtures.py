"""Writes the fixtures with mmsegmentation: ``python tests/weights/make_fixtures.py [NAME ...]``.

It runs in an environment with mmsegmentation 1.2.2 (see ``mmseg_reference.py``) and, for networks that
classify masks, mmdet 3.3.0. Each file has the config of a thin network, its state, an input, and what
mmsegmentation makes of it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import torch
from fixture_configs import BACKBONES, HEADS, HEADS_IN_NETWORKS, NETWORKS
from mask_classifier_configs import MASK_CLASSIFIERS
from mmseg_reference import build, logits_of
from torch import Tensor, nn

from benchmarks.mmsegmentation import import_mmsegmentation

FOLDER = Path(__file__).parent / "fixtures"
LARGEST = 300 * 1024

#: Standard deviation of parameters that would otherwise be next to nothing, or make next to no difference.
SPREAD = {
    r".*conv_seg\.\w+|se_layer\.weight|.*\.fc\.0\.weight": 0.5,
    r".*(theta|phi|nl_block\.g)\.conv\.\w+|.*(query|key)_conv\.\w+|pam\.(query|key)_project\.\w+": 0.5,
    r".*in_proj_bias|.*out_proj\.bias": 0.2,
}
#: Where those of heads alone are called as in a whole network.
HEAD_PREFIXED = ("fcn_head", "pspnet_head", "deeplabv3_head", "nonlocal_resnet", "ccnet", "danet")


def spread(model: nn.Module) -> nn.Module:
    """Draws parameters anew so that each matters in the output."""
    for name, parameter in model.named_parameters():
        for pattern, std in SPREAD.items():
            if re.fullmatch(pattern, name):
                nn.init.normal_(parameter, std=std)
        if name.endswith("gamma.scale"):
            nn.init.constant_(parameter, 0.7)
        elif name.endswith("in_proj_weight"):
            nn.init.normal_(parameter, std=1.5 * parameter.shape[1] ** -0.5)
    return model


def spread_backbone(model: nn.Module) -> nn.Module:
    """Draws weights so that features matter beside the norms' shifts, and do not grow from block to block."""
    is_transformer = not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for name, parameter in model.named_parameters():
        if is_transformer and parameter.dim() > 1:
            nn.init.normal_(parameter, std=1.0 if "table" in name else 0.3)
        elif is_transformer and "norm" not in name:
            nn.init.normal_(parameter, std=0.1)
        elif parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter)
            with torch.no_grad():
                parameter.mul_(0.2 if "conv3" in name else 1)
    return model


def spread_head(model: nn.Module) -> None:
    """Draws the weights of a head of queries so that attention looks at one place more than at another."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            std = 1.0 if "embed.weight" in name else parameter[0].numel() ** -0.5
            nn.init.normal_(
                parameter, std=3 * std if "in_proj" in name or "attention_weights" in name else std
            )
        elif name.endswith("bias") and not name.endswith("sampling_offsets.bias"):
            nn.init.normal_(parameter, std=0.2)


def compact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The floating point tensors as views of one: a file of many small tensors is mostly headers."""
    floats = {name: value for name, value in state.items() if value.is_floating_point()}
    joined = torch.cat([value.flatten() for value in floats.values()])
    pieces = joined.split([value.numel() for value in floats.values()])
    return {
        name: piece.view(value.shape) for (name, value), piece in zip(floats.items(), pieces, strict=True)
    }


def make_backbone(name: str) -> dict[str, Any]:
    """A backbone and its features."""
    config, size = BACKBONES[name]
    model = spread_backbone(build(config))
    image = torch.randn(1, 3, *size)
    features = [feature.clone().contiguous() for feature in model(image)]
    state = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    indices = [key for key in state if key.endswith("relative_position_index")][:1]
    state = {**compact(state), **{key: state[key].clone() for key in indices}}
    return {"config": config, "state": state, "image": image, "features": features}


def make_head(name: str) -> dict[str, Any]:
    """A head, or a neck, and what it makes of random features."""
    config, shapes = HEADS[name]
    model = spread(build(config))
    features = [torch.randn(1, *shape) for shape in shapes]
    out = model(features)
    result: dict[str, Any] = {"config": config, "features": features, "state": dict(model.state_dict())}
    if name in HEAD_PREFIXED:
        result["config"] = {"decode_head": config}
        result["state"] = {f"decode_head.{key}": value for key, value in result["state"].items()}
    if name == "jpu":
        result["output"] = out[-1].clone()
    elif name == "danet":
        result["logits"], position, channel = out
        result["side_logits"] = {"position": position, "channel": channel}
    else:
        result["logits"] = out
    return result


def make_head_in_network(name: str) -> dict[str, Any]:
    """The heads of a network, and what they make of random features."""
    config, shapes = HEADS_IN_NETWORKS[name]
    model = spread(build(config))
    features = [2 * torch.randn(1, *shape).relu() for shape in shapes]
    state = {key: v.clone() for key, v in model.state_dict().items() if not key.startswith("backbone.")}
    result = {"config": config, "state": state, "features": features}
    if name == "ocr_resnet":
        result["coarse"] = model.decode_head[0](features)
        result["logits"] = model.decode_head[1](features, result["coarse"])
    elif name == "encnet":
        result["logits"], result["presence"] = model.decode_head(features)
    else:
        result["logits"] = model.decode_head(model.neck(features) if model.with_neck else features)
    return result


def make_network(name: str) -> dict[str, Any]:
    """A whole network, its features and logits; ``more_`` of a second image where there are two."""
    config, sizes = NETWORKS[name]
    model = spread(build(config))
    if config["backbone"]["type"].startswith("ResNet"):
        spread_backbone(model.backbone)
    images = [torch.randn(1, 3, *size) for size in sizes]
    classifier, scale = model.decode_head.conv_seg, logits_of(model, images[0]).std()
    classifier.weight /= scale
    classifier.bias /= scale
    features = [[feature.clone() for feature in model.extract_feat(image)] for image in images]
    result = {
        "config": config,
        "state": compact(model.state_dict()),
        "image": images[0],
        "features": features[0],
        "logits": logits_of(model, images[0]),
    }
    if len(images) > 1:
        result |= {"more_images": images[1], "more_features": features[1]}
    return result


def make_mask_classifier(name: str) -> dict[str, Any]:
    """A network that classifies masks, and classes and masks of its queries.

    Weights and images are numbers of half precision, which halves the file.
    """
    from mmengine.config import ConfigDict
    from mmseg.structures import SegDataSample

    config, size = MASK_CLASSIFIERS[name]
    model = build(ConfigDict(config))
    spread_backbone(model.backbone)
    spread_head(model.decode_head)
    for tensor in model.state_dict().values():
        tensor.copy_(tensor.half() if tensor.is_floating_point() else tensor)
    image = torch.randn(2, 3, *size).half()
    samples = [SegDataSample(metainfo={"img_shape": size, "batch_input_shape": size}) for _ in image]
    classes, masks = model.decode_head(model.extract_feat(image.float()), samples)
    state = {key: value.half() for key, value in model.state_dict().items() if value.is_floating_point()}
    return {
        "config": config,
        "state": compact(state),
        "image": image,
        "classes": classes[-1].clone(),
        "masks": masks[-1].clone(),
    }


MAKERS = {
    **dict.fromkeys(BACKBONES, make_backbone),
    **dict.fromkeys(HEADS, make_head),
    **dict.fromkeys(HEADS_IN_NETWORKS, make_head_in_network),
    **dict.fromkeys(NETWORKS, make_network),
    **dict.fromkeys(MASK_CLASSIFIERS, make_mask_classifier),
}


@torch.no_grad()
def main() -> None:
    """Writes the named fixtures, or all."""
    unknown = set(sys.argv[1:]) - set(MAKERS)
    if unknown:
        sys.exit(f"unknown: {sorted(unknown)}; known are {sorted(MAKERS)}")
    import_mmsegmentation()
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MAKERS:
        content = MAKERS[name](name)
        path = FOLDER / f"{name}.pt"
        torch.save(content, path)
        torch.load(path, weights_only=True)
        main_output = next(
            content[key] for key in ("logits", "output", "masks", "features") if key in content
        )
        main_output = main_output[-1] if isinstance(main_output, list) else main_output
        size = path.stat().st_size
        print(f"{name}: {size} bytes, deviation of the output {main_output.std():.3f}")
        if size > LARGEST:
            sys.exit(f"{path} is larger than {LARGEST} bytes")


if __name__ == "__main__":
    main()
