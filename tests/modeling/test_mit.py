"""SegFormer's encoder: its layers by loops, its sizes, drop path, recomputation, frozen parts, errors."""

import re

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.config import get_regseg_cfg
from regseg_d2.engine.layer_decay import layer_scales
from regseg_d2.modeling.backbones.mit import (
    Block,
    EfficientAttention,
    MixFFN,
    MixVisionTransformer,
    PatchEmbedding,
    build_mit_backbone,
)
from tests.helpers import NUM_CLASSES, small_batch, small_cfg
from tests.references import transformer as slow

RGB = ShapeSpec(channels=3)
THIN = {"EMBED_DIMS": [4, 8, 20, 32], "NUM_LAYERS": [1, 2, 1, 1]}
# Of the whole encoders, as mmsegmentation 1.2.2 builds them.
PARAMETERS = {
    "b0": 3319392,
    "b1": 13151424,
    "b2": 24196288,
    "b3": 44072128,
    "b4": 60842688,
    "b5": 81443008,
}


def mit_cfg(**options):
    cfg = get_regseg_cfg()
    for key, value in {**THIN, **options}.items():
        cfg.merge_from_list([key if "." in key else f"MODEL.MIT.{key}", value])
    return cfg


def make_mit(**options):
    torch.manual_seed(0)
    return build_mit_backbone(mit_cfg(**options), RGB)


def randomise(module):
    """Float64 and weights of a size at which every part matters."""
    generator = torch.Generator().manual_seed(5)
    for p in module.parameters():
        scale = 0.5 if p.dim() == 1 else 2 * p[0].numel() ** -0.5
        p.data.copy_(torch.randn(p.shape, generator=generator) * scale)
    return module.double().requires_grad_(False)


def pixels(x):
    """``(C, h, w)`` as ``(h * w, C)``, row by row."""
    return torch.stack([x[:, i, j] for i in range(x.shape[1]) for j in range(x.shape[2])])


def normed(tokens, norm):
    return torch.stack([slow.layer_norm(token, norm.weight, norm.bias) for token in tokens])


def test_patch_embedding_by_loops():
    embed = randomise(PatchEmbedding(2, 3, 7, 4))
    x = torch.randn(1, 2, 9, 6, dtype=torch.float64)
    tokens, size = embed(x)
    conv = slow.convolve(x[0], embed.conv.weight, embed.conv.bias, stride=4, padding=3)
    assert size == (3, 2) == conv.shape[1:]
    torch.testing.assert_close(tokens[0], normed(pixels(conv), embed.norm))


@pytest.mark.parametrize("reduction", [1, 2])
def test_attention_by_loops(reduction):
    attention = randomise(EfficientAttention(6, num_heads=2, reduction=reduction))
    image = torch.randn(6, 5, 3, dtype=torch.float64)
    tokens = pixels(image)
    coarse = tokens
    if reduction == 2:
        # Two rows and one column of keys: what is left over of five rows and three columns is none.
        grid = slow.convolve(image, attention.reduce.weight, attention.reduce.bias, stride=2)
        assert grid.shape[1:] == (2, 1)
        coarse = normed(pixels(grid), attention.reduce_norm)
    weights, biases = attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3)
    queries, keys, values = (
        source @ weight.T + bias
        for source, weight, bias in zip((tokens, coarse, coarse), weights, biases, strict=True)
    )
    attended = slow.attend(queries, keys, values, num_heads=2)
    expected = attended @ attention.out.weight.T + attention.out.bias
    result = attention(tokens[None], (5, 3))[0]
    torch.testing.assert_close(result, expected)
    # Even attention would hide wrong queries and keys.
    assert (attended - attended.mean(0)).abs().max() > 0.05


def test_mix_ffn_by_loops():
    mlp = randomise(MixFFN(2))
    image = torch.randn(2, 3, 5, dtype=torch.float64)
    inner = slow.convolve(image, mlp.expand.weight, mlp.expand.bias)
    inner = slow.gelu(slow.convolve(inner, mlp.mix.weight, mlp.mix.bias, padding=1, groups=8))
    expected = slow.convolve(inner, mlp.narrow.weight, mlp.narrow.bias)
    torch.testing.assert_close(mlp(pixels(image)[None], (3, 5))[0], pixels(expected))


def test_block_has_two_shortcuts():
    block = randomise(Block(4, num_heads=2, reduction=1, drop_path=0.0))
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    middle = x + block.attention(block.norm1(x), (2, 3))
    torch.testing.assert_close(block(x, (2, 3)), middle + block.mlp(block.norm2(middle), (2, 3)))


@pytest.mark.parametrize("size", [(64, 96), (37, 61), (29, 50)])
def test_features_of_any_size(size):
    backbone = make_mit().eval()
    features = backbone(torch.randn(1, 3, *size))
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for (name, feature), width in zip(features.items(), THIN["EMBED_DIMS"], strict=True):
        spec = backbone.output_shape()[name]
        assert spec.channels == width
        assert feature.shape == (1, width, -(-size[0] // spec.stride), -(-size[1] // spec.stride))
        # The last layer norm of each stage: no channel can be a constant offset of the others.
        torch.testing.assert_close(feature.mean(1), torch.zeros_like(feature.mean(1)), atol=1e-5, rtol=0)
    assert [spec.stride for spec in backbone.output_shape().values()] == [4, 8, 16, 32]
    assert backbone.size_divisibility == 32


@pytest.mark.parametrize("depth", sorted(PARAMETERS))
def test_full_sizes(depth):
    with torch.device("meta"):
        backbone = build_mit_backbone(mit_cfg(DEPTH=depth, EMBED_DIMS=[], NUM_LAYERS=[]), RGB)
    assert sum(p.numel() for p in backbone.parameters()) == PARAMETERS[depth]


def test_stages_behind_the_last_feature_are_not_built():
    backbone = make_mit(OUT_FEATURES=["res4", "res2"])
    assert len(backbone.stages) == 3
    features = backbone(torch.randn(2, 3, 32, 32))
    assert list(features) == list(backbone.output_shape()) == ["res2", "res4"]
    sum(feature.square().sum() for feature in features.values()).backward()
    assert all(p.grad is not None for p in backbone.parameters())


def test_drop_path_grows_from_the_first_block_to_the_last():
    backbone = make_mit(DROP_PATH=0.4)
    rates = [block.drop_path.drop_prob for stage in backbone.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    image = torch.randn(2, 3, 32, 32)
    first, second = (backbone.train()(image)["res5"] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (backbone.eval()(image)["res5"] for _ in range(2))
    assert torch.equal(first, second)


def test_recomputing_gives_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        backbone = make_mit(CHECKPOINT=recompute, DROP_PATH=0.5).train()
        calls = []
        backbone.stages[1].blocks[0].mlp.register_forward_hook(lambda *_, seen=calls: seen.append(1))
        torch.manual_seed(1)
        image = torch.randn(2, 3, 40, 40)
        sum(feature.square().sum() for feature in backbone(image).values()).backward()
        assert len(calls) == (2 if recompute else 1)
        gradients.append([p.grad for p in backbone.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, ()), (1, ("stages.0.embed.",)), (2, ("stages.0.",))])
def test_frozen_parts(freeze_at, frozen):
    backbone = make_mit(**{"MODEL.BACKBONE.FREEZE_AT": freeze_at}, DROP_PATH=0.5).train()
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen if frozen else "-")
    assert backbone.stages[0].training == (freeze_at < 2)
    assert backbone.stages[1].training
    sum(feature.sum() for feature in backbone(torch.randn(1, 3, 32, 32)).values()).backward()


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        # Stem, then five blocks; what is behind the backbone is layer 6, or 5 with four stages.
        (
            "block",
            {"0.embed": 6, "0.blocks.0": 5, "0.norm": 5, "1.embed": 4, "1.blocks.0": 4, "1.blocks.1": 3},
        ),
        ("stage", {"0.embed": 5, "0.blocks.0": 4, "0.norm": 4, "1.embed": 3, "1.blocks.1": 3}),
    ],
)
def test_layers_for_layer_wise_rates(unit, expected):
    scales = layer_scales(make_mit(), 0.5, unit)
    expected = {**expected, "1.norm": 3, "2.embed": 2, "2.blocks.0": 2, "3.blocks.0": 1, "3.norm": 1}
    for part, power in expected.items():
        values = {value for name, value in scales.items() if name.startswith(f"stages.{part}.")}
        assert values == {0.5**power}, part


def test_memory_format_does_not_change_the_features():
    backbone = make_mit().double().eval()
    image = torch.randn(2, 3, 37, 50, dtype=torch.float64)
    expected = backbone(image)
    result = backbone.to(memory_format=torch.channels_last)(image.to(memory_format=torch.channels_last))
    for name, feature in expected.items():
        torch.testing.assert_close(result[name], feature, rtol=1e-10, atol=1e-12)


def test_segformer_trains_and_keeps_the_size():
    cfg = small_cfg(
        "FCN",
        ["CAR"],
        BACKBONE__NAME="build_mit_backbone",
        SEM_SEG_HEAD__IN_FEATURES=["res2", "res3", "res4", "res5"],
        SEM_SEG_HEAD__FUSION="MLPFusion",
        SEM_SEG_HEAD__FCN_NUM_CONVS=0,
        SEM_SEG_HEAD__PROJECTION_KERNEL_SIZE=1,
        **{f"MIT__{key}": value for key, value in THIN.items()},
    )
    model = build_model(cfg)
    losses = model(small_batch(1))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.parameters())
    assert model.eval()(small_batch(1, size=(20, 45)))[0]["sem_seg"].shape == (NUM_CLASSES, 20, 45)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DEPTH", "b6"),
        ("EMBED_DIMS", [4, 8, 20]),
        ("EMBED_DIMS", [4, 8, 21, 32]),
        ("EMBED_DIMS", [0, 8, 20, 32]),
        ("NUM_LAYERS", [1, 1, 1]),
        ("NUM_LAYERS", [1, 0, 1, 1]),
        ("OUT_FEATURES", []),
        ("OUT_FEATURES", ["res1"]),
        ("DROP_PATH", 1.0),
        ("MODEL.BACKBONE.FREEZE_AT", 6),
    ],
)
def test_wrong_values_are_named(key, value):
    with pytest.raises(ConfigError, match=re.escape(f"{key} is {value!r};")):
        make_mit(**{key: value})


def test_without_a_config():
    backbone = MixVisionTransformer(embed_dims=[4, 8, 20, 32], num_layers=[1, 1, 1, 1], out_features=["res5"])
    assert not backbone.stages[0].recompute
    assert list(backbone(torch.zeros(1, 3, 32, 32))) == ["res5"]
