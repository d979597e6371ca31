"""Parameter groups of real networks, each parameter's rate and decay by its number."""

import re

import pytest
import timm
from detectron2.modeling import build_model
from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.files import load_config
from regseg_d2.engine.layer_decay import layer_scales
from regseg_d2.engine.optim import parameter_groups
from tests.helpers import small_cfg

SCHEDULES = "configs/_base_/schedules"


class Net(nn.Module):
    """A timm network where the backbones of this package have theirs, with a head."""

    def __init__(self, name, **options):
        super().__init__()
        self.backbone = nn.ModuleDict({"network": timm.create_model(name, features_only=True, **options)})
        self.sem_seg_head = nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))


def convnext():
    return Net("convnext_atto")


def thin_swin():
    return Net("swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))


def make_cfg(**keys):
    cfg = get_regseg_cfg()
    cfg.SOLVER.BASE_LR = 0.5
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    for key, value in keys.items():
        cfg.SOLVER[key] = value
    return cfg


def settings_by_name(model, cfg):
    """(learning rate, weight decay) of each trainable parameter; each has to be in exactly one group."""
    groups = parameter_groups(cfg, model)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trainable)
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups)
    return {
        trainable[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }


def assert_settings(found, expected):
    assert found.keys() == expected.keys()
    wrong = {name: (found[name], expected[name]) for name in found if found[name] != expected[name]}
    assert all(a == pytest.approx(b, rel=1e-12) for a, b in wrong.values()), wrong


def convnext_layer(name, first_layers):
    """Layer of a parameter of convnext_atto, whose stages have 2, 2, 6 and 2 blocks."""
    if name.startswith("stem_"):
        return 0
    stage, block = re.match(r"stages_(\d)\.(?:blocks\.(\d+)|downsample)\.", name).groups()
    return first_layers[int(stage)] + int(block or 0)


def test_convnext_block_by_block():
    model = convnext()
    cfg = make_cfg(
        LAYER_DECAY=0.9,
        WEIGHT_DECAY_BIAS=0.0,
        NO_DECAY=["gamma"],
        HEAD_MULTIPLIER=10.0,
        BACKBONE_MULTIPLIER=0.5,
    )
    expected = {}
    for name, parameter in model.named_parameters():
        decay = 0.0 if parameter.ndim == 1 else 0.01
        if name.startswith("backbone."):
            layer = convnext_layer(name.removeprefix("backbone.network."), first_layers=(1, 3, 5, 11))
            expected[name] = (0.5 * 0.5 * 0.9 ** (13 - layer), decay)
        else:
            expected[name] = (5.0, decay)
    assert_settings(settings_by_name(model, cfg), expected)
    # A wrong pattern in this test would make it say nothing.
    assert sum(name.endswith("gamma") for name in expected) == 12


def test_convnexts_schedule_has_the_published_rates(caplog):
    model = convnext()
    cfg = load_config(f"{SCHEDULES}/adamw_convnext_ade20k_160k.yaml")
    found = settings_by_name(model, cfg)
    rates = {
        re.sub(r"(stem|stages_\d).*", r"\1", name.removeprefix("backbone.network.")): lr
        for name, (lr, _) in found.items()
    }
    # decay_rate 0.9, stage_wise, num_layers 6 of the authors' config: 0.9 ** (8 - id - 1), id 0 the stem's.
    powers = {"stem": 7, "stages_0": 6, "stages_1": 5, "stages_2": 4, "stages_3": 3}
    for part, power in powers.items():
        assert rates[part] == pytest.approx(1e-4 * 0.9**power)
    assert rates["sem_seg_head.0.weight"] == 1e-4
    assert {name: decay for name, (_, decay) in found.items()} == {
        name: 0.0 if parameter.ndim == 1 else 0.05 for name, parameter in model.named_parameters()
    }
    assert caplog.text == ""


def test_swins_schedule_spares_norms_of_the_backbone_and_position_biases(caplog):
    model = thin_swin()
    expected = {}
    for name, _ in model.named_parameters():
        spared = "relative_position_bias_table" in name or (name.startswith("backbone.") and "norm" in name)
        expected[name] = (6e-5, 0.0 if spared else 0.01)
    found = settings_by_name(model, load_config(f"{SCHEDULES}/adamw_swin_ade20k_160k.yaml"))
    assert_settings(found, expected)
    assert found["sem_seg_head.1.weight"] == (6e-5, 0.01)
    assert sum("relative_position_bias_table" in name for name in expected) == 5
    assert caplog.text == ""


def test_segformers_head_learns_ten_times_as_fast():
    model = thin_swin()
    found = settings_by_name(model, load_config(f"{SCHEDULES}/adamw_segformer_ade20k_160k.yaml"))
    assert found["sem_seg_head.0.weight"] == pytest.approx((6e-4, 0.01))
    assert found["sem_seg_head.1.bias"] == pytest.approx((6e-4, 0.01))
    assert found["backbone.network.patch_embed.norm.weight"] == (6e-5, 0.0)
    assert found["backbone.network.patch_embed.proj.weight"] == (6e-5, 0.01)


@pytest.mark.parametrize("unit", ["block", "stage"])
def test_swin_by_layers(unit):
    model = thin_swin()
    # Stages of 1, 1, 2 and 1 blocks.
    first_layers, last = ((1, 2, 3, 5), 6) if unit == "block" else ((1, 2, 3, 4), 5)
    expected = {}
    for name, _ in model.backbone.named_parameters():
        layer = 0
        if match := re.match(r"network\.layers_(\d)\.(?:blocks\.(\d+)|downsample)\.", name):
            stage, block = match.groups()
            layer = first_layers[int(stage)] + (int(block or 0) if unit == "block" else 0)
        else:
            assert name.startswith("network.patch_embed.")
        expected[name] = 0.5 ** (last - layer)
    assert layer_scales(model.backbone, 0.5, unit) == expected
    assert {0.5**power for power in range(1, last + 1)} == set(expected.values())


def test_resnet_in_a_whole_segmentor():
    cfg = small_cfg("FCN", ["CAR"])
    cfg.SOLVER.merge_from_list(
        ["BASE_LR", 0.5, "WEIGHT_DECAY", 0.01, "LAYER_DECAY", 0.5, "HEAD_MULTIPLIER", 3.0]
    )
    cfg.SOLVER.merge_from_list(["NO_DECAY", ["predictor.weight"], "BIAS_LR_FACTOR", 2.0])
    model = build_model(cfg)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    expected = {}
    for name, _ in model.named_parameters():
        decay = 0.0 if name.rpartition(".")[0] in norms or name == "sem_seg_head.predictor.weight" else 0.01
        rate = 1.5
        if name.startswith("backbone."):
            # The stem, and one block in each of the three stages up to res4.
            match = re.match(r"backbone\.network\.layer(\d)\.0\.", name)
            rate = 0.5 * 0.5 ** (4 - (int(match[1]) if match else 0))
        expected[name] = (rate * (2 if name.endswith(".bias") else 1), decay)
    assert_settings(settings_by_name(model, cfg), expected)


@pytest.mark.parametrize(
    ("name", "options", "first", "last", "num_layers"),
    [
        ("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 12}, "model.pos_embed", "model.blocks.3.", 5),
        ("hrnet_w18_small", {"feature_location": ""}, "conv1.", "stage4.0.", 5),
        ("tf_efficientnet_lite0", {}, "conv_stem.", "blocks.6.0.", 17),
    ],
)
def test_other_families_tell_their_layers_too(name, options, first, last, num_layers):
    scales = layer_scales(timm.create_model(name, features_only=True, **options), 0.5, "block")
    assert {scale for key, scale in scales.items() if key.startswith(last)} == {0.5}
    assert {scale for key, scale in scales.items() if key.startswith(first)} == {0.5**num_layers}
    assert set(scales.values()) == {0.5**power for power in range(1, num_layers + 1)}


def test_what_belongs_to_no_layer_learns_as_the_head():
    backbone = nn.ModuleDict({"network": timm.create_model("convnext_atto", features_only=True)})
    backbone["jpu"] = nn.Conv2d(4, 4, 1)
    scales = layer_scales(backbone, 0.5, "stage")
    assert scales["jpu.weight"] == 1.0
    assert scales["network.stages_3.blocks.0.gamma"] == 0.5


def test_a_shared_parameter_does_not_decay_under_any_of_its_names():
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "first": nn.Linear(2, 2)})
    model["second"] = model["first"]
    found = settings_by_name(model, make_cfg(NO_DECAY=["second.w*t"]))
    assert found["first.weight"] == (0.5, 0.0)
    assert found["backbone.weight"] == found["first.bias"] == (0.5, 0.01)


def test_a_pattern_that_fits_nothing_is_told(caplog):
    settings_by_name(nn.ModuleDict({"backbone": nn.Linear(2, 2)}), make_cfg(NO_DECAY=["gamma"]))
    assert "SOLVER.NO_DECAY" in caplog.text
    assert "'gamma'" in caplog.text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"HEAD_MULTIPLIER": 0.0}, r"SOLVER\.HEAD_MULTIPLIER is 0\.0; expected"),
        ({"LAYER_DECAY": 1.1}, r"SOLVER\.LAYER_DECAY is 1\.1; expected a number above 0 and up to 1"),
        ({"LAYER_DECAY": 0.0}, r"SOLVER\.LAYER_DECAY is 0\.0; expected"),
        ({"LAYER_DECAY": 0.9, "LAYER_DECAY_UNIT": "layer"}, r"SOLVER\.LAYER_DECAY_UNIT is 'layer'; expected"),
        ({"LAYER_DECAY": 0.9}, r"SOLVER\.LAYER_DECAY is 0\.9, and the backbone Linear does not say"),
        ({"NO_DECAY": [""]}, r"SOLVER\.NO_DECAY is \[''\]; expected parts of the names"),
        ({"NO_DECAY": [3]}, r"SOLVER\.NO_DECAY is \[3\]; expected parts of the names"),
    ],
)
def test_errors_name_the_key(keys, message):
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=message):
        parameter_groups(make_cfg(**keys), model)


def test_a_matcher_that_fits_nothing_is_an_error():
    backbone = nn.Linear(2, 2)
    backbone.group_matcher = lambda coarse: {"stem": "^conv"}
    with pytest.raises(
        ConfigError, match=r"SOLVER\.LAYER_DECAY is 0\.5, and the backbone Linear does not say"
    ):
        layer_scales(backbone, 0.5, "block")


def test_without_the_keys_nothing_changes():
    model = convnext()
    found = settings_by_name(model, make_cfg())
    norms = {name for name, m in model.named_modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d))}
    assert found == {
        name: (0.5, 0.0 if name.rpartition(".")[0] in norms else 0.01) for name, _ in model.named_parameters()
    }
