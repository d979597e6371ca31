"""Thin networks for checkpoints of other packages."""

import runpy
import sys
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

import regseg_d2.segmentor  # noqa: F401  registers networks
from regseg_d2.apps.convert_weights import convert_file
from regseg_d2.config.files import load_config
from regseg_d2.engine.checkpoint import SafeCheckpointer
from regseg_d2.modeling.heads import ContextHead
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.weights.mmseg_heads import HEAD_RULES
from regseg_d2.weights.renaming import prefixed, rename_all
from tests.helpers import small_cfg

FIXTURES = Path(__file__).parent / "fixtures"
HEAD = "MODEL.SEM_SEG_HEAD."
COMMON = {"MODEL.DEVICE": "cpu", f"{HEAD}NUM_CLASSES": 7, f"{HEAD}NORM": "BN", f"{HEAD}IN_FEATURES": ["res5"]}
RESNET = {
    **COMMON,
    "MODEL.RESNETS.CONTRACT_DILATION": True,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 2,
    f"{HEAD}AUX.IN_FEATURE": "res4",
    f"{HEAD}AUX.CHANNELS": 4,
}
# The network of the fixture fcn_resnet50_thin.
MMSEG_FCN = {
    **RESNET,
    f"{HEAD}CONTEXT": "FCN",
    f"{HEAD}FCN_NUM_CONVS": 2,
    f"{HEAD}CONCAT_INPUT": True,
    f"{HEAD}CONTEXT_CHANNELS": 8,
    f"{HEAD}CONVS_DIM": 8,
}

IMAGE = torch.randn(1, 3, 49, 65, generator=torch.Generator().manual_seed(3))
TIMM = {**COMMON, "MODEL.BACKBONE.NAME": "build_timm_backbone", "MODEL.TIMM.OUTPUT_STRIDE": 32}
PLAIN_FCN = {f"{HEAD}CONTEXT": "FCN", f"{HEAD}CONTEXT_CHANNELS": 8, f"{HEAD}PROJECTION": ""}
NONE = {f"{HEAD}AUX.IN_FEATURE": ""}
#: The network of ThinResNet.
TORCHVISION = {
    **RESNET,
    "MODEL.RESNETS.STEM_TYPE": "basic",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    f"{HEAD}AUX.CHANNELS": 32,
    f"{HEAD}AUX.KERNEL_SIZE": 3,
}


def load_head(name, keys):
    """A fixture of mmsegmentation's, and our head, with ``keys`` of SEM_SEG_HEAD, that has its tensors."""
    fixture = torch.load(FIXTURES / f"{name}.pt", weights_only=True)
    theirs = fixture["config"]["decode_head"]
    keys = {
        **keys,
        "CONTEXT_CHANNELS": theirs["channels"],
        "CONVS_DIM": theirs["channels"],
        "NUM_CLASSES": theirs["num_classes"],
        "IN_FEATURES": ["res5"],
    }
    cfg = small_cfg("FCN", **{f"SEM_SEG_HEAD__{key}": value for key, value in keys.items()})
    head = ContextHead(resolve_auto_norm(cfg), {"res5": ShapeSpec(channels=theirs["in_channels"], stride=8)})
    rules = prefixed(HEAD_RULES[keys["CONTEXT"]], r"decode_head\.", "")
    renamed, unknown = rename_all(fixture["state"], rules)
    assert unknown == []
    head.load_state_dict(renamed, strict=True)
    return fixture, head.eval()


def options(keys):
    return [str(item) for pair in keys.items() for item in pair]


def make_cfg(keys) -> CfgNode:
    return load_config("", options(keys))


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms and convolutions that matter, in evaluation mode."""
    torch.manual_seed(seed)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if isinstance(module.weight, nn.Parameter):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            with torch.no_grad():
                module.weight.mul_(0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def load_directly(keys, path, strict=False) -> nn.Module:
    """A model whose MODEL.WEIGHTS is the file."""
    cfg = make_cfg(keys)
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    checkpointer = SafeCheckpointer(model, cfg=cfg)
    if strict:
        checkpointer.load_for_evaluation(str(path))
    else:
        checkpointer.resume_or_load(str(path), resume=False)
    return model


def load_converted(keys, path, source, tmp_path, strict=False) -> tuple[nn.Module, str]:
    """A model whose MODEL.WEIGHTS is the converted file, and what the tool printed."""
    text = convert_file(str(path), str(tmp_path / "converted.pth"), source=source, opts=options(keys))
    return load_directly(keys, tmp_path / "converted.pth", strict), text


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    theirs = b.state_dict()
    assert a.state_dict().keys() == theirs.keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def save(content, path):
    torch.save(content, path)
    return path


TOOL = Path(__file__).parents[2] / "tools" / "convert_weights.py"


def run_tool(arguments, monkeypatch, capsys):
    """Runs ``tools/convert_weights.py`` in this process; its exit status, and what it printed."""
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in (TOOL, *arguments)])
    status = 0
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as exit_:
        status = exit_.code
    printed = capsys.readouterr()
    return status, printed.err if status else printed.out


def check_both_ways(keys, path, source, tmp_path, strict=True):
    """Converts, loads directly, compares; the model and what the tool printed."""
    model, text = load_converted(keys, path, source, tmp_path, strict)
    assert_same_weights(model, load_directly(keys, path, strict))
    return model, text


@torch.no_grad()
def logits_of(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Logits at feature size."""
    return model.sem_seg_head.layers(model.backbone(image))[0]
