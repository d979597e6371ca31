"""Parameter groups, clipping and schedules, by their numbers."""

import copy

import pytest
import torch
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.config import get_regseg_cfg
from regseg_d2.engine.optim import (
    build_gradient_clipper,
    build_lr_scheduler,
    build_optimizer,
    parameter_groups,
)


class ActNorm(nn.BatchNorm2d):
    """Stands for timm's BatchNormAct2d, which derives from BatchNorm2d as well."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), ActNorm(4), nn.LayerNorm(4))
        self.sem_seg_head = nn.Sequential(nn.Conv2d(4, 2, 1), nn.GroupNorm(1, 2))
        self.regularizers = nn.ModuleDict({"car": nn.Linear(2, 2)})
        self.shared = self.sem_seg_head[0]
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)


def make_cfg(**keys):
    cfg = get_regseg_cfg()
    cfg.SOLVER.BASE_LR = 0.5
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    for key, value in keys.items():
        cfg.merge_from_list([f"SOLVER.{key.replace('__', '.')}", value])
    return cfg


def settings_by_name(net, groups):
    names = {parameter: name for name, parameter in net.named_parameters()}
    return {names[p]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_groups_by_number():
    net = Net()
    cfg = make_cfg(BACKBONE_MULTIPLIER=0.1, WEIGHT_DECAY_NORM=0.002, WEIGHT_DECAY_BIAS=0.003)
    groups = parameter_groups(cfg, net)
    assert settings_by_name(net, groups) == {
        "backbone.0.weight": (0.05, 0.01),
        "backbone.0.bias": (0.05, 0.003),
        "backbone.1.weight": (0.05, 0.002),
        "backbone.1.bias": (0.05, 0.003),
        "backbone.2.weight": (0.05, 0.002),
        "backbone.2.bias": (0.05, 0.003),
        "sem_seg_head.0.weight": (0.5, 0.01),
        "sem_seg_head.0.bias": (0.5, 0.003),
        "sem_seg_head.1.weight": (0.5, 0.002),
        "sem_seg_head.1.bias": (0.5, 0.003),
        "regularizers.car.weight": (0.5, 0.01),
        "regularizers.car.bias": (0.5, 0.003),
    }
    parameters = [p for group in groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == 12


def test_biases_follow_the_weights_by_default_and_their_rate_multiplies_the_backbones():
    net = Net()
    groups = parameter_groups(make_cfg(BACKBONE_MULTIPLIER=0.1, BIAS_LR_FACTOR=2.0), net)
    found = settings_by_name(net, groups)
    assert found["backbone.0.bias"] == (0.1, 0.01)
    assert found["sem_seg_head.0.bias"] == (1.0, 0.01)
    assert found["backbone.1.weight"] == (0.05, 0.0)


@pytest.mark.parametrize(
    ("name", "kind"), [("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)]
)
def test_optimizers(name, kind):
    cfg = make_cfg(OPTIMIZER=name, BETAS=[0.8, 0.99], MOMENTUM=0.7)
    optimizer = build_optimizer(cfg, Net())
    assert type(optimizer) is kind
    assert optimizer.defaults["fused"]
    if name == "SGD":
        assert optimizer.defaults["momentum"] == 0.7
    else:
        assert optimizer.defaults["betas"] == (0.8, 0.99)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_updates_go_on_when_a_checkpoint_has_another_memory_format(name):
    def make(memory_format):
        torch.manual_seed(0)
        net = Net()
        net.backbone[0] = nn.Conv2d(3, 4, 3)
        net = net.to(memory_format=memory_format)
        return net, build_optimizer(make_cfg(OPTIMIZER=name), net)

    def step(net, optimizer, seed):
        images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net.backbone[0](images).square().sum().backward()
        optimizer.step()

    written, written_optimizer = make(torch.contiguous_format)
    resumed, resumed_optimizer = make(torch.channels_last)
    step(written, written_optimizer, seed=1)
    resumed.load_state_dict(written.state_dict())
    resumed_optimizer.load_state_dict(copy.deepcopy(written_optimizer.state_dict()))
    for seed in (2, 3):
        step(written, written_optimizer, seed)
        step(resumed, resumed_optimizer, seed)
    assert not resumed.backbone[0].weight.is_contiguous()
    torch.testing.assert_close(resumed.backbone[0].weight, written.backbone[0].weight)


def test_errors_name_what_is_expected():
    with pytest.raises(ConfigError, match=r"'AdamX'; expected one of SGD, Adam, AdamW.*did you mean 'Adam'"):
        build_optimizer(make_cfg(OPTIMIZER="AdamX"), Net())
    with pytest.raises(ConfigError, match="nothing|frozen"):
        build_optimizer(make_cfg(), nn.Identity())
    optimizer = build_optimizer(make_cfg(), Net())
    with pytest.raises(ConfigError, match="did you mean 'WarmupPolyLR'"):
        build_lr_scheduler(make_cfg(LR_SCHEDULER_NAME="WarmupPoly"), optimizer)
    with pytest.raises(ConfigError, match="WARMUP_METHOD is 'cubic'"):
        build_lr_scheduler(make_cfg(WARMUP_METHOD="cubic"), optimizer)
    with pytest.raises(ConfigError, match="CLIP_TYPE is 'all'"):
        build_gradient_clipper(make_cfg(CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE="all"))


def test_poly_schedule_with_warmup_follows_the_formula():
    cfg = make_cfg(MAX_ITER=20, WARMUP_ITERS=4, WARMUP_FACTOR=0.1, BACKBONE_MULTIPLIER=0.1)
    optimizer = build_optimizer(cfg, Net())
    scheduler = build_lr_scheduler(cfg, optimizer)
    for t in range(20):
        warmup = 1.0 if t >= 4 else 0.1 * (1 - t / 4) + t / 4
        expected = 0.5 * (1 - t / 20) ** 0.9 * warmup
        rates = {group["lr"] for group in optimizer.param_groups}
        assert sorted(rates) == pytest.approx([0.1 * expected, expected])
        optimizer.step()
        scheduler.step()


def gradients_after(clip_type, gradients, value):
    cfg = make_cfg(
        CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE=clip_type, CLIP_GRADIENTS__CLIP_VALUE=value
    )
    parameters = [nn.Parameter(torch.zeros(len(g))) for g in gradients] + [nn.Parameter(torch.zeros(1))]
    for parameter, gradient in zip(parameters, gradients, strict=False):  # the last one has none
        parameter.grad = torch.tensor(gradient)
    build_gradient_clipper(cfg)(parameters)
    return [parameter.grad.tolist() for parameter in parameters[:-1]]


def test_clipping_by_value_norm_and_norm_of_all():
    gradients = [[3.0, -4.0], [0.6, 0.8]]
    assert gradients_after("value", gradients, 2.0) == [[2.0, -2.0], pytest.approx([0.6, 0.8])]
    by_norm = gradients_after("norm", gradients, 2.0)
    assert by_norm[0] == pytest.approx([1.2, -1.6], rel=1e-5)  # norm 5 -> 2
    assert by_norm[1] == pytest.approx([0.6, 0.8])  # norm 1 stays
    scale = 2.0 / 26**0.5  # norm of all: sqrt(25 + 1)
    together = gradients_after("full_model", gradients, 2.0)
    assert together[0] == pytest.approx([3 * scale, -4 * scale], rel=1e-5)
    assert together[1] == pytest.approx([0.6 * scale, 0.8 * scale], rel=1e-5)


def test_no_clipper_by_default():
    assert build_gradient_clipper(make_cfg()) is None
