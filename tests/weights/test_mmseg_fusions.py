"""HRNet's head, UPerNet, SegFormer and JPU: mmsegmentation's tensors, features and logits."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec

from regseg_d2.config import get_regseg_cfg
from regseg_d2.modeling.backbones.mit import build_mit_backbone
from regseg_d2.modeling.heads import JPU, ContextHead
from regseg_d2.modeling.norms import resolve_auto_norm
from regseg_d2.weights.mmseg_backbones import BACKBONE_RULES
from regseg_d2.weights.mmseg_heads import HEAD_RULES, NECK_RULES
from regseg_d2.weights.renaming import rename_all
from regseg_d2.weights.segformer import convert_official_mit

FIXTURES = Path(__file__).parent / "fixtures"


def load(name):
    return torch.load(FIXTURES / f"{name}.pt", weights_only=True)


def rename(state, rules):
    renamed, unknown = rename_all(state, rules)
    assert unknown == []
    return renamed


def part_of(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def make_head(config, rules, state, **keys):
    """A head as the config says, with the tensors of the fixture."""
    cfg = get_regseg_cfg()
    head = cfg.MODEL.SEM_SEG_HEAD
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    head.NUM_CLASSES = config["num_classes"]
    head.CONTEXT = "FCN"
    head.CONTEXT_CHANNELS = head.CONVS_DIM = config["channels"]
    for key, value in keys.items():
        head[key] = value
    shapes = {
        f"res{i + 2}": ShapeSpec(channels=width, stride=4 * 2**i)
        for i, width in enumerate(config["in_channels"])
    }
    built = ContextHead(resolve_auto_norm(cfg), shapes).eval()
    built.load_state_dict(rename(state, rules), strict=True)
    return built


@torch.no_grad()
def compare(head, features, expected):
    logits, _ = head.layers({f"res{i + 2}": x for i, x in enumerate(features)})
    assert logits.shape == expected.shape
    assert expected.std() > 0.5
    assert (logits - expected).abs().max() < 2e-5


def test_hrnet_head():
    fixture = load("hrnet_fcn_head")
    head = make_head(
        fixture["config"],
        HEAD_RULES["FCN"],
        fixture["state"],
        FUSION="Concat",
        FCN_NUM_CONVS=1,
        FCN_KERNEL_SIZE=1,
        PROJECTION="",
    )
    compare(head, fixture["features"], fixture["logits"])


def test_upernet():
    fixture = load("upernet_head")
    head = make_head(
        fixture["config"], HEAD_RULES["UPerFPN"], fixture["state"], FUSION="UPerFPN", FCN_NUM_CONVS=0
    )
    compare(head, fixture["features"], fixture["logits"])


def make_segformer(fixture):
    """Backbone and head with the tensors of the fixture."""
    config = fixture["config"]
    cfg = get_regseg_cfg()
    cfg.MODEL.MIT.EMBED_DIMS = config["decode_head"]["in_channels"]
    cfg.MODEL.MIT.NUM_LAYERS = config["backbone"]["num_layers"]
    backbone = build_mit_backbone(cfg, ShapeSpec(channels=3)).eval()
    tensors = rename(part_of(fixture["state"], "backbone."), BACKBONE_RULES["mit"])
    backbone.load_state_dict(tensors, strict=True)
    head = make_head(
        config["decode_head"],
        HEAD_RULES["MLPFusion"],
        part_of(fixture["state"], "decode_head."),
        FUSION="MLPFusion",
        FCN_NUM_CONVS=0,
        PROJECTION_KERNEL_SIZE=1,
    )
    return backbone, head


@torch.no_grad()
@pytest.mark.parametrize("which", ["", "more_"])
def test_mit_features(which):
    fixture = load("segformer_b0_thin")
    backbone, _ = make_segformer(fixture)
    image = fixture["more_images" if which else "image"]
    assert all(side % 4 for side in image.shape[-2:])
    features = backbone(image)
    for feature, expected in zip(features.values(), fixture[f"{which}features"], strict=True):
        assert feature.shape == expected.shape
        assert (feature - expected).abs().max() < 1e-5


@torch.no_grad()
def test_segformer_from_image_to_logits():
    fixture = load("segformer_b0_thin")
    backbone, head = make_segformer(fixture)
    compare(head, list(backbone(fixture["image"]).values()), fixture["logits"])


@torch.no_grad()
def test_jpu():
    fixture = load("jpu")
    config = fixture["config"]
    jpu = JPU(
        in_channels=config["in_channels"],
        channels=config["mid_channels"],
        dilations=config["dilations"],
        norm="BN",
    ).eval()
    tensors = part_of(rename(fixture["state"], NECK_RULES["JPU"]), "fusion.")
    jpu.load_state_dict(tensors, strict=True)
    result = jpu(fixture["features"])
    assert result.shape == fixture["output"].shape
    assert (result - fixture["output"]).abs().max() < 1e-5


def official_state(state):
    """The fixture's backbone as SegFormer's authors name and split its tensors, and their classifier."""
    official = {}
    for name, value in part_of(state, "backbone.layers.").items():
        stage, part, *rest = name.split(".")
        rest, number = ".".join(rest), int(stage) + 1
        if part == "0":
            official[f"patch_embed{number}.{rest.replace('projection', 'proj')}"] = value
        elif part == "2":
            official[f"norm{number}.{rest}"] = value
        else:
            prefix = f"block{number}.{rest.split('.')[0]}"
            rest = rest.split(".", 1)[1]
            if "in_proj" in rest:
                kind = rest.rpartition("_")[2]
                size = len(value) // 3
                official[f"{prefix}.attn.q.{kind}"] = value[:size]
                official[f"{prefix}.attn.kv.{kind}"] = value[size:]
                continue
            for theirs, ours in {
                "ffn.layers.0": "mlp.fc1",
                "ffn.layers.1": "mlp.dwconv.dwconv",
                "ffn.layers.4": "mlp.fc2",
                "attn.attn.out_proj": "attn.proj",
            }.items():
                rest = rest.replace(theirs, ours)
            matrix = rest in ("mlp.fc1.weight", "mlp.fc2.weight")
            official[f"{prefix}.{rest}"] = value[:, :, 0, 0] if matrix else value
    return {**official, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}


def test_the_authors_weights_become_the_same_encoder():
    fixture = load("segformer_b0_thin")
    backbone, _ = make_segformer(fixture)
    renamed, unknown = convert_official_mit(official_state(fixture["state"]))
    assert unknown == ["head.weight", "head.bias"]
    expected = backbone.state_dict()
    assert set(renamed) == set(expected)
    for name, value in expected.items():
        assert torch.equal(renamed[name], value), name


@pytest.mark.parametrize("missing", ["q", "kv"])
def test_half_an_attention_layer_is_refused(missing):
    state = official_state(load("segformer_b0_thin")["state"])
    del state[f"block1.0.attn.{missing}.weight"]
    with pytest.raises(ValueError, match=r"block1\.0\.attn\.(q|kv)\.weight"):
        convert_official_mit(state)
