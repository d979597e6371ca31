"""DINOv2 and DINOv3 as backbones: last norm, sizes, weights, freezing, rates, and the pyramid of UPerNet."""

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import nn

from regseg_d2.common.errors import CheckpointError, ConfigError
from regseg_d2.engine.layer_decay import layer_scales
from regseg_d2.evaluation.inference.network import Network
from regseg_d2.evaluation.inference.protocol import InferenceProtocol
from regseg_d2.modeling.backbones.pretrained import pretrained_file
from regseg_d2.modeling.backbones.rescaling import RescaledFeatures
from regseg_d2.modeling.backbones.timm import TimmBackbone
from tests.modeling.dino_networks import FOUR, KINDS, build_dino, dino_cfg, options
from tests.modeling.timm_networks import randomise
from tests.weights.serving import own_caches


def full_network(kind, **more):
    """The whole classification network of timm, which reads images of any size."""
    return timm.create_model(KINDS[kind][0], dynamic_img_size=True, **options(kind, **more)).eval()


def as_map(tokens, kind, patches):
    """Patch tokens ``(N, T, C)``, those before them left out, as ``(N, C, h, w)``."""
    return tokens[:, KINDS[kind][2] :].transpose(1, 2).unflatten(2, patches)


@pytest.mark.parametrize("patches", [(4, 4), (3, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_feature_goes_through_the_networks_last_norm(kind, patches):
    torch.manual_seed(0)
    full, backbone = randomise(full_network(kind)), build_dino(kind).eval()
    ours = {name.removeprefix("model."): value for name, value in backbone.network.state_dict().items()}
    assert "norm.weight" in ours
    backbone.network.model.load_state_dict({k: v for k, v in full.state_dict().items() if k in ours})
    blocks = []
    for block in full.blocks:
        block.register_forward_hook(lambda module, inputs, output: blocks.append(output))
    patch = KINDS[kind][1]
    image = torch.randn(2, 3, patch * patches[0], patch * patches[1])
    with torch.no_grad():
        last, features = full.forward_features(image), backbone(image)
    torch.testing.assert_close(features["res5"], as_map(last, kind, patches))
    for name, tokens in zip(FOUR, blocks, strict=True):
        mean, variance = tokens.mean(-1, keepdim=True), tokens.var(-1, keepdim=True, unbiased=False)
        normed = (tokens - mean) / (variance + full.norm.eps).sqrt() * full.norm.weight + full.norm.bias
        torch.testing.assert_close(features[name], as_map(normed, kind, patches), rtol=1e-4, atol=1e-5)
    assert backbone.output_shape()["res2"].stride == backbone.size_divisibility == patch


@pytest.mark.parametrize("size", [(50, 75), (14, 33)])
@pytest.mark.parametrize("head", ["linear", "four", "upernet"])
@pytest.mark.parametrize("kind", ["dinov2 with registers", "dinov3"])
def test_images_of_any_size(kind, head, size):
    cfg = dino_cfg(kind, head)
    torch.manual_seed(0)
    model = randomise(build_model(cfg)).eval()
    image = torch.randint(0, 256, (3, *size)).to(torch.uint8)
    with torch.no_grad():
        (result,) = model([{"image": image, "height": size[0], "width": size[1]}])
        (maps,) = Network(model, InferenceProtocol.from_config(cfg))(image[None])
    assert result["sem_seg"].shape[-2:] == size
    assert torch.isfinite(result["sem_seg"]).all() and result["sem_seg"].std() > 1e-4
    torch.testing.assert_close(maps.all_classes(), result["sem_seg"])


def test_a_network_of_two_blocks():
    backbone = build_dino("dinov3", ["res5"], options=options("dinov3", depth=2))
    assert backbone(torch.randn(1, 3, 32, 16))["res5"].shape == (1, 32, 2, 1)


# ------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("img_size", [56, 98])
def test_weights_that_timm_saves_with_another_size_of_the_position_embedding(kind, img_size, tmp_path):
    """Bicubic and antialiased, as timm resizes them; tokens before the patches keep theirs."""
    has_positions = kind != "dinov3"
    full = randomise(full_network(kind, **({"img_size": img_size} if has_positions else {})))
    path = tmp_path / "weights.pth"
    torch.save(full.state_dict(), path)
    backbone = build_dino(kind)
    backbone.load_pretrained(str(path))
    loaded = backbone.network.model.state_dict()
    for name, value in loaded.items():
        if name != "pos_embed":
            assert torch.equal(value, full.state_dict()[name]), name
    assert ("pos_embed" in loaded) == has_positions
    if has_positions:
        prefix = 0 if full.no_embed_class else 1
        grid = full.pos_embed.detach()[:, prefix:].transpose(1, 2).unflatten(2, (img_size // 14,) * 2)
        grid = F.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True)
        torch.testing.assert_close(loaded["pos_embed"][:, prefix:], grid.flatten(2).transpose(1, 2))
        assert torch.equal(loaded["pos_embed"][:, :prefix], full.pos_embed[:, :prefix])


def test_weights_of_dinov2s_authors(tmp_path):
    """The same names, and a token that pre-training alone uses."""
    full = randomise(full_network("dinov2"))
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save({**full.state_dict(), "mask_token": torch.ones(1, 32)}, path)
    backbone = build_dino("dinov2")
    backbone.load_pretrained(str(path))
    for name, value in backbone.network.model.state_dict().items():
        assert torch.equal(value, full.state_dict()[name]), name


def test_weights_of_another_width_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(full_network("dinov2", embed_dim=16).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"'\w+' of 'vit_small_patch14_dinov2' is .*expected"):
        build_dino("dinov2").load_pretrained(str(path))


@pytest.mark.parametrize(
    ("name", "tag"), [("vit_small_patch14_dinov2", "lvd142m"), ("vit_small_patch16_dinov3", "lvd1689m")]
)
def test_a_tag_without_a_network_names_the_file(name, tag, tmp_path, monkeypatch):
    own_caches(tmp_path, monkeypatch)
    with pytest.raises(CheckpointError, match=rf"MODEL.TIMM.PRETRAINED: .*timm/{name}.{tag}/.*give its path"):
        pretrained_file(tag, name)


def test_a_wrong_tag_lists_those_of_the_network():
    with pytest.raises(ConfigError, match="weights of 'vit_small_patch16_dinov3' are lvd1689m"):
        pretrained_file("lvd142m", "vit_small_patch16_dinov3")


# ---------------------------------------------------------------- what learns, and how fast


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_a_frozen_network_is_frozen_and_the_pyramid_is_not(kind):
    backbone = build_dino(kind, freeze_at=5, rescale=True).train()
    assert not any(p.requires_grad for p in backbone.network.model.parameters())
    used = ("patch_embed", "pos_drop", "norm_pre", "rope", "blocks.", "norm")
    parts = [m for name, m in backbone.network.model.named_modules() if name.startswith(used)]
    assert len(parts) > 50 and not any(m.training for m in parts)
    assert all(p.requires_grad for p in backbone.rescaled.parameters())
    assert all(m.training for m in backbone.rescaled.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_norm_learns_with_the_last_block(kind):
    backbone = build_dino(kind, freeze_at=3).train()
    learns = {name for name, p in backbone.network.model.named_parameters() if p.requires_grad}
    assert "norm.weight" in learns
    assert {name.split(".")[1] for name in learns if name.startswith("blocks")} == {"2", "3"}
    assert not learns & {"pos_embed", "cls_token", "reg_token", "patch_embed.proj.weight"}


@pytest.mark.parametrize("kind", KINDS)
def test_rates_of_blocks_tokens_and_position_embedding(kind):
    backbone = build_dino(kind, rescale=True)
    scales = layer_scales(backbone, 0.5, "block")
    stem = {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    stem |= {"reg_token"} if KINDS[kind][2] == 5 else set()
    stem |= {"pos_embed"} if kind != "dinov3" else set()
    found = set()
    for name in (name for name, _ in backbone.named_parameters()):
        own = name.removeprefix("network.model.")
        if name.startswith("rescaled."):
            expected = 1.0
        elif own.startswith("blocks."):
            expected = 0.5 ** (4 - int(own.split(".")[1]))
        elif own.startswith("norm."):
            expected = 0.5
        else:
            expected = 0.5**5
            found.add(own)
        assert scales[name] == expected, name
    assert found == stem


# ------------------------------------------------------------------------------- the pyramid


def doubled(layer, x):
    """A transposed convolution of kernel and stride 2: each pixel becomes 2 x 2 of its own."""
    y = torch.einsum("nchw,coab->nohawb", x, layer.weight)
    return y.flatten(2, 3).flatten(3, 4) + layer.bias[:, None, None]


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_pyramid_by_hand(size):
    torch.manual_seed(0)
    module = randomise(RescaledFeatures(6)).double().eval()
    features = [torch.randn(2, 6, *size, dtype=torch.float64) for _ in range(4)]
    with torch.no_grad():
        found = module(features)
        first, norm, _, second = module.scales[0]
        x = doubled(first, features[0])
        x = (x - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps).sqrt()[:, None, None]
        x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        expected = [doubled(second, x), doubled(module.scales[1], features[1]), features[2]]
    halves = torch.empty(2, 6, -(-size[0] // 2), -(-size[1] // 2), dtype=torch.float64)
    for i in range(halves.shape[2]):
        for j in range(halves.shape[3]):
            halves[:, :, i, j] = features[3][:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].amax((2, 3))
    for ours, theirs in zip(found, [*expected, halves], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("kind", "strides"), [("dinov2", (3.5, 7, 14, 28)), ("dinov3", (4, 8, 16, 32))])
def test_strides_of_the_pyramid(kind, strides):
    backbone = build_dino(kind, rescale=True)
    patch = KINDS[kind][1]
    features = backbone(torch.randn(2, 3, 2 * patch, 6 * patch))
    assert backbone.size_divisibility == patch
    for (name, feature), stride in zip(features.items(), strides, strict=True):
        assert backbone.output_shape()[name].stride == stride
        assert feature.shape == (2, 32, 2 * patch / stride, 6 * patch / stride)


def test_norm_of_the_pyramid_is_that_of_the_model():
    backbone = build_dino("dinov3", rescale=True, norm="SyncBN")
    assert isinstance(backbone.rescaled.scales[0][1], nn.SyncBatchNorm)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet10t", {"out_norm": "final"}, "OUT_NORM 'final' is for networks .* 'resnet10t' has stages"),
        ("convnext_atto", {"rescale": True}, "RESCALE True is for networks .* 'convnext_atto' has stages"),
        ("vit_small_patch14_dinov2", {"rescale": True, "out_features": ["res4", "res5"]}, "there are 2"),
        ("beit_base_patch16_224", {"out_norm": "final"}, "'beit_base_patch16_224' has no last norm"),
    ],
)
def test_errors_name_key_and_network(name, arguments, message):
    given = {"output_stride": 32, "out_features": FOUR, **arguments}
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        TimmBackbone(name=name, **given)


def test_dinov3_convnext_is_a_convnext():
    tags = timm.list_pretrained("convnext_*.dinov3_lvd1689m")
    assert {tag.partition(".")[0] for tag in tags} >= {"convnext_tiny", "convnext_small", "convnext_base"}
