"""Networks of many timm families at an odd size: they train, or say what to set."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.backbones.timm import TimmBackbone
from regseg_d2.segmentor.build import build_model
from tests.helpers import NUM_CLASSES, small_batch, small_cfg

SIZE = (97, 129)

# The smallest network of each family, and what its images are padded to multiples of.
FAMILIES = {
    "convnextv2_atto": 32,
    "tf_efficientnetv2_b0": 32,
    "mobilenetv4_conv_small_035": 32,
    "fastvit_t8": 32,
    "maxvit_pico_rw_256": 256,
    "maxvit_tiny_tf_224": 224,
    "vit_small_patch14_dinov2": 14,
    "vit_tiny_patch16_dinov3_qkvb": 16,
    "eva02_tiny_patch14_224": 14,
    "regnety_002": 32,
    "hgnetv2_b0": 32,
    "mobilenetv3_small_050": 32,
    "swinv2_tiny_window8_256": 32,
    "repvit_m0_9": 32,
}
HIERA = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}
MAXVIT = {"embed_dim": (32, 32, 32, 32), "depths": (1, 1, 1, 1), "stem_width": 16}


def timm_cfg(name, output_stride=32, **options):
    cfg = small_cfg("FCN", ["CAR"])
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.OUTPUT_STRIDE = name, output_stride
    cfg.MODEL.TIMM.OUT_FEATURES = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res5"]
    for key, value in options.items():
        cfg.MODEL.TIMM.OPTIONS[key] = value
    return cfg


def step(cfg, size=SIZE):
    """One training step and one prediction; every parameter has a finite gradient."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with EventStorage():
        losses = model(small_batch(2, size=size))
    assert losses["loss_car_intra_c2p"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    optimizer.step()
    model.eval()
    with torch.no_grad():
        scores = model(small_batch(1, size=size))[0]["sem_seg"]
    assert scores.shape == (NUM_CLASSES, *size) and torch.isfinite(scores).all()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_at_an_odd_size(name):
    assert step(timm_cfg(name)).backbone.size_divisibility == FAMILIES[name]


@pytest.mark.slow
def test_hiera_says_what_to_set_and_trains_with_it():
    with pytest.raises(ConfigError, match=r"'hiera_tiny_224' is made for images of \[224, 224\]"):
        step(timm_cfg("hiera_tiny_224"))
    step(timm_cfg("hiera_tiny_224", img_size=[128, 160]))


def test_a_network_of_one_size_names_it_and_the_cure():
    message = (
        r"MODEL.TIMM.NAME: 'hiera_tiny_224' is made for images of \[64, 96\] pixels \(height, width\), and "
        r"got \[96, 64\]: .*INPUT.CROP.SIZE; TEST.MODE slide.*MODEL.TIMM.OPTIONS.img_size \[height, width\], "
        r"multiples of 32"
    )
    backbone = TimmBackbone(
        name="hiera_tiny_224",
        output_stride=32,
        out_features=["res5"],
        options={**HIERA, "img_size": (64, 96)},
    )
    assert backbone(torch.randn(1, 3, 64, 96))["res5"].shape[-2:] == (2, 3)
    with pytest.raises(ConfigError, match=message):
        backbone(torch.randn(1, 3, 96, 64))
    # Any other fault is not about the size.
    with pytest.raises(RuntimeError, match="channels"):
        backbone(torch.randn(1, 4, 64, 96))


@pytest.mark.parametrize("stage, multiple", [("res4", 32), ("res5", 64)])
def test_maxvit_is_padded_to_whole_windows(stage, multiple):
    backbone = TimmBackbone(
        name="maxvit_pico_rw_256", output_stride=32, out_features=[stage], options={**MAXVIT, "img_size": 64}
    )
    assert backbone.size_divisibility == multiple
    backbone(torch.randn(1, 3, 3 * multiple, multiple))
    with pytest.raises(ConfigError, match=rf"divisible by window.*multiples of {multiple}"):
        backbone(torch.randn(1, 3, 3 * multiple + 32, multiple + 16))


@pytest.mark.parametrize("lasting", [True, False])
def test_an_error_that_has_nothing_to_do_with_the_size_stays_what_it_is(lasting):
    backbone = TimmBackbone(
        name="maxvit_pico_rw_256", output_stride=32, out_features=["res4"], options={**MAXVIT, "img_size": 64}
    )
    calls = []

    def fail(module, args):
        calls.append(args)
        if lasting or len(calls) == 1:
            raise RuntimeError("can't allocate memory")

    backbone.network.stages_0.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="^can't allocate memory$"):
        backbone(torch.randn(1, 3, 96, 32))
    # What no size would cure is not said to be cured by one.
    with pytest.raises(RuntimeError, match="channels"):
        TimmBackbone(
            name="maxvit_pico_rw_256",
            output_stride=32,
            out_features=["res4"],
            options={**MAXVIT, "img_size": 64},
        )(torch.randn(1, 4, 96, 48))


@pytest.mark.parametrize("name", ["fastvit_t8", "hgnetv2_b0", "vit_small_patch14_dinov2", "repvit_m0_9"])
def test_a_network_that_cannot_be_dilated_says_so(name):
    message = rf"MODEL.TIMM.OUTPUT_STRIDE is 16, and '{name}' cannot be dilated; set it to 32, which leaves"
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(name=name, output_stride=16, out_features=["res5"])


def test_group_norm_names_the_channels_that_it_cannot_take():
    cfg = small_cfg(
        "FCN", ["RCH"], MODEL__SEM_SEG_HEAD__CONVS_DIM=32, MODEL__SEM_SEG_HEAD__CONTEXT_CHANNELS=32
    )
    cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
    cfg.MODEL.REGULARIZERS.RCH.CHANNELS = 16
    message = (
        "NORM is 'GN', whose 32 groups need a multiple of 32 channels, and a layer has 16; change that number"
    )
    with pytest.raises(ConfigError, match=rf"MODEL.REGULARIZERS.RCH: MODEL.SEM_SEG_HEAD.{message}"):
        build_model(cfg)
    cfg.MODEL.REGULARIZERS.RCH.CHANNELS = 32
    build_model(cfg)
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 16
    with pytest.raises(ConfigError, match=rf"^MODEL.SEM_SEG_HEAD.{message}"):
        build_model(cfg)
