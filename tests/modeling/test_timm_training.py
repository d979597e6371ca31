"""timm backbones in training: drop path, gradient checkpointing, frozen stages."""

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from tests.modeling.timm_networks import CONVNEXT, build, randomise

# ------------------------------------------------------------------------------------- drop path


@pytest.mark.parametrize("kind", ["swin", "convnext", "resnet", "efficientnet", "dinov2"])
def test_drop_path_grows_to_its_rate_and_is_off_in_evaluation(kind):
    def rates(backbone):
        return [m.drop_prob for m in backbone.modules() if isinstance(m, DropPath)]

    assert not any(rates(build(kind)))
    backbone = build(kind, drop_path=0.4)
    probabilities = rates(backbone)
    assert probabilities == sorted(probabilities)
    # timm's EfficientNet divides by the number of blocks, the others by one less.
    assert probabilities[-1] == pytest.approx(0.4, rel=0.1)
    randomise(backbone)
    image = torch.randn(4, 3, 56, 56) if kind == "dinov2" else torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        backbone.eval()
        assert torch.equal(backbone(image)["res5"], backbone(image)["res5"])
        for module in backbone.train().modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        assert not torch.equal(backbone(image)["res5"], backbone(image)["res5"])


def test_drop_path_of_the_options_is_kept():
    backbone = build("convnext", options={**CONVNEXT, "drop_path_rate": 0.3})
    rates = [m.drop_prob for m in backbone.modules() if hasattr(m, "drop_prob")]
    assert max(rates) == pytest.approx(0.3)


# --------------------------------------------------------------------------------- checkpointing


@pytest.mark.parametrize("kind", ["resnet", "efficientnet", "swin", "convnext", "dinov2"])
def test_checkpointing_gives_the_same_gradients_and_statistics(kind):
    plain = randomise(build(kind, drop_path=0.3)).train()
    checkpointed = build(kind, drop_path=0.3, checkpoint=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 56, 56) if kind == "dinov2" else torch.randn(2, 3, 64, 64)
    for step in range(2):
        for backbone in (plain, checkpointed):
            backbone.zero_grad()
            torch.manual_seed(step)  # the same paths are dropped
            sum((feature * feature).mean() for feature in backbone(image).values()).backward()
        gradients = {name: p.grad for name, p in plain.named_parameters()}
        for name, parameter in checkpointed.named_parameters():
            assert (parameter.grad is None) == (gradients[name] is None), name
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, gradients[name])
        for name, buffer in checkpointed.named_buffers():
            assert torch.equal(buffer, dict(plain.named_buffers())[name]), name
    assert all(m.momentum > 0 for m in checkpointed.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("kind", ["convnext", "swin", "dinov2"])
def test_checkpointing_keeps_less(kind):
    def kept(backbone):
        size = 0

        def count(tensor):
            nonlocal size
            if not isinstance(tensor, nn.Parameter):
                size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            backbone(torch.randn(1, 3, 56, 56))
        return size

    assert kept(build(kind, checkpoint=True).train()) < 0.8 * kept(build(kind).train())


def test_checkpointing_survives_a_copy():
    backbone = copy.deepcopy(build("resnet", checkpoint=True)).train()
    image = torch.randn(2, 3, 64, 64)
    backbone(image)["res5"].sum().backward()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}


# -------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize(
    ("kind", "freeze_at", "frozen", "trained"),
    [
        ("resnet", 1, ["network.conv1.", "network.bn1."], ["network.layer1."]),
        ("resnet", 3, ["network.conv1.", "network.layer1.", "network.layer2."], ["network.layer3."]),
        (
            "efficientnet",
            2,
            ["network.conv_stem", "network.blocks.0.", "network.blocks.1."],
            ["network.blocks.2."],
        ),
        ("swin", 1, ["network.patch_embed."], ["network.layers_0.", "out_norms.res2."]),
        (
            "swin",
            2,
            ["network.patch_embed.", "network.layers_0.", "out_norms.res2."],
            ["network.layers_1.", "out_norms.res3."],
        ),
        ("convnext", 1, ["network.stem_"], ["network.stages_0.", "network.stages_1."]),
        ("hrnet", 1, ["network.conv1.", "network.bn2."], ["network.layer1.", "network.stage2."]),
        (
            "hrnet",
            3,
            ["network.layer1.", "network.transition1.", "network.stage2.", "network.transition2."],
            ["network.stage3."],
        ),
        (
            "dinov2",
            1,
            ["network.model.patch_embed.", "network.model.cls_token", "network.model.pos_embed"],
            ["network.model.blocks.0."],
        ),
        (
            "dinov2",
            2,
            ["network.model.blocks.0.", "network.model.blocks.1.", "network.model.pos_embed"],
            ["network.model.blocks.2."],
        ),
        ("regnet", 5, ["network.", "out_norms.res2.", "out_norms.res5."], []),
    ],
)
def test_frozen_stages(kind, freeze_at, frozen, trained):
    backbone = randomise(
        build(kind, freeze_at=freeze_at, out_norm="LN", drop_path=0.3 if kind == "swin" else 0.0)
    )
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.eval()
    backbone.train()
    image = torch.randn(2, 3, 56, 56) if kind == "dinov2" else torch.randn(2, 3, 64, 64)
    features = backbone(image)
    if trained:
        sum((feature * feature).mean() for feature in features.values()).backward()
    for prefix in frozen:
        parameters = [p for name, p in backbone.named_parameters() if name.startswith(prefix)]
        assert parameters and all(p.grad is None and not p.requires_grad for p in parameters), prefix
    for prefix in trained:
        parameters = [p for name, p in backbone.named_parameters() if name.startswith(prefix)]
        assert parameters and all(p.requires_grad for p in parameters), prefix
        assert any(p.grad is not None for p in parameters), prefix
    for name, value in backbone.state_dict().items():
        if name.startswith(tuple(frozen)):
            assert torch.equal(value, before[name]), name
    for name, module in backbone.named_modules():
        if name and f"{name}.".startswith(tuple(p for p in frozen if p.endswith("."))):
            assert not module.training, name
    moved = [
        n for n, v in backbone.state_dict().items() if n.endswith("running_mean") and not v.equal(before[n])
    ]
    assert bool(moved) == (kind in ("resnet", "efficientnet", "hrnet"))


def test_nothing_is_frozen_by_default():
    backbone = build("swin").train()
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert all(module.training for module in backbone.modules())
