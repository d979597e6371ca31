"""Pyramid pooling by hand."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import PPM
from tests.helpers import NUM_CLASSES, small_batch, small_cfg


def make_ppm(pool_sizes=(1, 2, 3, 6), norm="BN"):
    torch.manual_seed(0)
    return PPM(in_channels=8, out_channels=5, pool_sizes=pool_sizes, norm=norm)


@pytest.mark.parametrize("size", [(6, 12), (7, 5)])
def test_by_hand(size):
    ppm = make_ppm().eval()
    x = torch.randn(2, 8, *size)
    parts = [x]
    for pool, branch in zip((1, 2, 3, 6), ppm.branches, strict=True):
        assert branch.weight.shape == (2, 8, 1, 1)
        cells = torch.zeros(2, 8, pool, pool)
        for i in range(pool):
            for j in range(pool):
                # Cell i reaches from floor(i h / p) to ceil((i + 1) h / p).
                top, bottom = i * size[0] // pool, -(-(i + 1) * size[0] // pool)
                left, right = j * size[1] // pool, -(-(j + 1) * size[1] // pool)
                cells[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
        parts.append(F.interpolate(branch(cells), size=size, mode="bilinear", align_corners=False))
    expected = ppm.fuse(torch.cat(parts, dim=1))
    result, side_logits = ppm(x)
    assert side_logits == {}
    torch.testing.assert_close(result, expected)
    assert result.shape == (2, ppm.out_channels, *size)


def test_a_batch_of_one_image_trains():
    ppm = make_ppm().train()
    ppm(torch.randn(1, 8, 6, 6))[0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in ppm.parameters())


def test_as_the_head_of_the_paper():
    cfg = small_cfg(
        "FCN",
        SEM_SEG_HEAD__CONTEXT="PPM",
        SEM_SEG_HEAD__PROJECTION="",
        SEM_SEG_HEAD__PPM_POOL_SIZES=[1, 2],
    )
    model = build_model(cfg)
    assert model.sem_seg_head.predictor.in_channels == cfg.MODEL.SEM_SEG_HEAD.CONTEXT_CHANNELS
    sum(model(small_batch()).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.eval()(small_batch(1))[0]["sem_seg"].shape == (NUM_CLASSES, 64, 64)


@pytest.mark.parametrize("pool_sizes", [(), (0, 1)])
def test_wrong_sizes_are_named(pool_sizes):
    with pytest.raises(ConfigError, match="PPM_POOL_SIZES"):
        make_ppm(pool_sizes)
