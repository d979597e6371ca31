"""Parts of a network that a checkpoint fills by half, at the command line and at the start of a training."""

import re
from pathlib import Path

import pytest
import torch
from torch import Size

from regseg_d2.common.errors import CheckpointError
from regseg_d2.weights.mmseg_kinds import KINDS, describe_head
from regseg_d2.weights.network import Network
from regseg_d2.weights.parts import parts_of
from tests.weights.published_helpers import (
    FIXTURES,
    HEAD,
    MMSEG_FCN,
    load_directly,
    make_cfg,
    options,
    run_tool,
    save,
)


@pytest.fixture(scope="module")
def state():
    return torch.load(FIXTURES / "fcn_resnet50_thin.pt", weights_only=True)["state"]


def without(state, *beginnings):
    left = {name: value for name, value in state.items() if not name.startswith(beginnings)}
    assert len(left) < len(state)
    return left


@pytest.fixture
def convert(tmp_path, monkeypatch, capsys):
    """Runs the tool on a state; its exit status, what it printed, and whether it wrote a file."""

    def run(state, keys=MMSEG_FCN, *arguments):
        theirs, out = save(state, tmp_path / "theirs.pth"), tmp_path / "out" / "ours.pth"
        out.parent.mkdir(exist_ok=True)
        command = ["--from", "mmseg", *arguments, theirs, out, *options(keys)]
        status, printed = run_tool(command, monkeypatch, capsys)
        return status, printed, [p.name for p in out.parent.iterdir()]

    return run


#: What of the file is left out, keys that differ from the file's network, and what the error says.
HALF = {
    "a norm of the backbone": (
        ["backbone.layer3.0.bn1."],
        {},
        r"backbone.res4: 91 of 95 tensors are from the file; new: backbone.res4.0.conv1.norm.weight, ",
    ),
    "a stem of another kind": (
        [],
        {"MODEL.RESNETS.STEM_TYPE": "basic"},
        r"backbone.stem: 0 of 5 tensors are from the file; other shape: backbone.stem.conv1.weight "
        r"\(\(4, 3, 3, 3\) in the file, \(8, 3, 7, 7\) here\)",
    ),
    "a norm of the head": (
        ["decode_head.convs.0.bn.weight"],
        {},
        r"sem_seg_head.context: 9 of 10 tensors are from the file; new: sem_seg_head.context.convs.0.norm.w",
    ),
    "a block of the head": (
        ["decode_head.convs.0."],
        {},
        r"sem_seg_head.context: 5 of 10 tensors are from the file; new: sem_seg_head.context.convs.0.weight",
    ),
    "a block of another width": (
        [],
        {f"{HEAD}CONCAT_INPUT": False},
        r"sem_seg_head.projection: 4 of 5 tensors are from the file; other shape: .*projection.conv.weight",
    ),
    "a norm of the auxiliary head": (
        ["auxiliary_head.convs.0.bn."],
        {},
        r"sem_seg_head.auxiliary: 3 of 7 tensors are from the file; new: sem_seg_head.auxiliary.context",
    ),
}


@pytest.mark.parametrize("case", HALF)
def test_a_part_that_came_by_half_is_an_error_everywhere(case, state, convert, tmp_path):
    left_out, change, message = HALF[case]
    keys = {**MMSEG_FCN, **change}
    state = without(state, *left_out) if left_out else state
    status, printed, written = convert(state, keys)
    assert (status, written) == (2, [])
    with pytest.raises(CheckpointError, match=message) as error:
        load_directly(keys, tmp_path / "theirs.pth")
    assert " ".join(str(error.value).split()) in " ".join(printed.split())  # later lines are indented there


def test_a_part_of_the_head_that_is_new_is_an_error_of_the_tool_alone(state, convert, tmp_path):
    status, printed, written = convert(without(state, "decode_head.conv_cat."))
    assert (status, written) == (2, [])
    assert (
        "sem_seg_head.projection: 0 of 5 tensors are from the file; new: sem_seg_head.projection" in printed
    )
    model = load_directly(MMSEG_FCN, tmp_path / "theirs.pth")
    assert torch.equal(model.sem_seg_head.predictor.weight, state["decode_head.conv_seg.weight"])


def test_what_of_the_files_head_has_no_place_is_an_error_of_the_tool(state, convert, tmp_path):
    status, printed, written = convert({**state, "decode_head.ema_module.bases": torch.zeros(1, 4, 2)})
    assert (status, written) == (2, [])
    assert "nothing here has a place for decode_head.ema_module.bases" in printed
    assert "not supported: this is mmsegmentation's EMAHead" in printed


def test_a_head_that_is_left_out_whole_is_said(state, convert):
    status, printed, written = convert(without(state, "decode_head.", "auxiliary_head."))
    assert (status, written) == (0, ["ours.pth"])
    assert "Head: none of it is from the file.\n" in printed
    # One that has other tensors only is named.
    mask2former = {**without(state, "decode_head."), "decode_head.query_feat.weight": torch.zeros(2, 2)}
    _, printed, written = convert(mask2former)
    assert written == ["ours.pth"]
    assert "Of the file's head: this is mmsegmentation's Mask2FormerHead, which here is MODEL.META" in printed


def test_the_backbone_alone_is_an_option(state, convert, tmp_path):
    half = without(state, "decode_head.convs.0.")
    status, printed, _ = convert(half, MMSEG_FCN, "--backbone-only")
    assert status == 0
    assert "Head: none of it is from the file." in printed
    saved = torch.load(tmp_path / "out" / "ours.pth", weights_only=True)["model"]
    assert len(saved) > 200
    assert all(name.startswith("backbone.") for name in saved)


def test_an_auxiliary_head_may_be_new(state, convert):
    status, printed, _ = convert(without(state, "auxiliary_head."))
    assert status == 0
    assert "sem_seg_head.auxiliary.predictor: weight (7, 4, 1, 1)" in printed


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "part", "is_needed"),
    [
        ("stem.conv1.norm.weight", "stem", True),
        ("res5.2.conv3.weight", "res5", True),
        ("stages.1.blocks.0.attention.qkv.weight", "stages.1", True),
        ("network.conv1.0.weight", "stem", True),
        ("network.bn1.bias", "stem", True),
        ("network.layer4.0.conv1.weight", "network.layer4", True),
        ("network.stem_1.weight", "stem", True),
        ("network.stages_3.downsample.0.weight", "network.stages_3", True),
        ("network.patch_embed.proj.weight", "stem", True),
        ("network.layers_2.blocks.1.norm1.weight", "network.layers_2", True),
        ("network.transition3.2.0.0.weight", "network.transition3", True),
        ("network.stage4.0.fuse_layers.0.1.0.weight", "network.stage4", True),
        ("network.conv_stem.weight", "stem", True),
        ("network.model.blocks.11.attn.proj.bias", "network.model.blocks.11", True),
        ("network.model.pos_embed", "stem", True),
        ("network.model.norm.weight", "network.model.norm", False),
        ("out_norms.res2.bias", "out_norms.res2", False),
        ("swin.embeddings.norm.bias", "stem", True),
        ("model.encoder.layers.2.blocks.0.layernorm_after.bias", "model.encoder.layers.2", True),
        ("embedder.embedder.convolution.weight", "stem", True),
        ("encoder.stages.3.layers.0.shortcut.convolution.weight", "encoder.stages.3", True),
    ],
)
def test_parts_of_backbones(name, part, is_needed):
    network = Network(make_cfg(MMSEG_FCN), {f"backbone.{name}": Size([2])})
    (found,), head = parts_of([f"backbone.{name}"], {}, network)
    assert (found.name, found.is_needed, head) == (f"backbone.{part}", is_needed, [])
    assert not found.is_half


def test_what_a_network_computes_by_itself_belongs_to_no_part():
    names = ["backbone.stem.bn1.num_batches_tracked", "backbone.network.layers_0.relative_position_index"]
    network = Network(make_cfg(MMSEG_FCN), dict.fromkeys(names, Size([])))
    assert parts_of([], {}, network) == ([], [])


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["decode_head.query_embed.weight"], "this is .*MaskFormerHead, which here is .*: maskformer"),
        (
            ["decode_head.query_embed.weight", "decode_head.query_feat.weight"],
            "this is .*Mask2FormerHead, which here is .*: mask2former",
        ),
        (["decode_head.fusion.stages.0.g.weight"], "not supported: this is mmsegmentation's ANNHead"),
        (["neck.lateral_convs.0.conv.weight", "neck.convs.0.conv.weight"], ".*MultiLevelNeck"),
        (
            ["neck.lateral_convs.0.conv.weight", "decode_head.convs.0.conv.weight"],
            "not supported.*FPN with.*",
        ),
        (["neck.lateral_convs.0.conv.weight", "decode_head.scale_heads.0.0.bn.bias"], "this is.*FPNHead.*"),
        (["decode_head.lateral_convs.0.conv.weight", "decode_head.fpn_bottleneck.bn.bias"], ".*UPerFPN"),
        (["backbone.conv1.weight", "decode_head.convs.0.conv.weight"], ""),
    ],
)
def test_whose_head_it_is(names, kind):
    assert re.fullmatch(kind, describe_head(names)), describe_head(names)


def test_every_kind_that_is_here_names_a_config_or_a_key():
    root = Path(__file__).parents[2]
    for _, _, here in KINDS:
        is_key = here.startswith(("MODEL.SEM_SEG_HEAD.", "MODEL.META_ARCHITECTURE: "))
        assert not here or is_key or (root / here).is_file(), here
