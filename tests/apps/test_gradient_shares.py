"""How much losses pull at a backbone, by hand."""

import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from regseg_d2.apps.gradient_shares import format_shares, measure_gradient_shares
from regseg_d2.common.errors import ConfigError
from tests.helpers import small_batch, small_cfg


class Plane(nn.Module):
    """A model of two numbers: losses are linear in them, so that gradients are known."""

    def __init__(self, slopes):
        super().__init__()
        self.backbone = nn.Linear(2, 1, bias=False)
        self.slopes = slopes

    def forward(self, batch):
        return {
            name: scale * (torch.tensor(slope) * self.backbone.weight[0]).sum() * batch[0]["scale"]
            for name, (scale, slope) in self.slopes.items()
        }


def test_by_hand():
    model = Plane(
        {"loss_sem_seg": (2.0, [3.0, 4.0]), "loss_a": (1.0, [4.0, -3.0]), "loss_b": (-0.5, [3.0, 4.0])}
    )
    with torch.no_grad():
        model.backbone.weight.copy_(torch.tensor([[1.0, 1.0]]))
    shares = measure_gradient_shares(model, [[{"scale": 1.0}], [{"scale": 3.0}]])
    assert [share.loss for share in shares] == ["loss_sem_seg", "loss_a", "loss_b"]
    # Means over the two batches; the lengths scale with the batch, their ratios do not.
    assert [share.value for share in shares] == pytest.approx([28.0, 2.0, -7.0])
    assert [share.share for share in shares] == pytest.approx([1.0, 0.5, 0.25])
    assert [share.cosine for share in shares] == pytest.approx([1.0, 0.0, -1.0], abs=1e-7)
    table = format_shares(shares)
    assert "| loss_b       |  -7.000 |" in table
    assert "0.250 |" in table
    assert "-1.00 |" in table


def test_a_weight_scales_its_share():
    shares = []
    for weight in (1.0, 3.0):
        torch.manual_seed(0)
        # An untrained network is right in one class only: anchors would have no negatives.
        keys = {"REGULARIZERS__PNE__WEIGHT": weight, "REGULARIZERS__PNE__NO_NEGATIVES": "anchors"}
        model = build_model(small_cfg("FCN", ["PNE"], **keys))
        torch.manual_seed(1)
        measured = measure_gradient_shares(model, [small_batch()])
        shares.append({share.loss: share for share in measured}["loss_pne_contrast"])
    assert shares[1].value == pytest.approx(3 * shares[0].value, rel=1e-5)
    assert shares[1].share == pytest.approx(3 * shares[0].share, rel=1e-5)
    assert shares[1].cosine == pytest.approx(shares[0].cosine, rel=1e-5)
    assert shares[0].share > 0


def test_without_cross_entropy_or_backbone_it_says_so():
    with pytest.raises(ConfigError, match="have no 'loss_sem_seg'"):
        measure_gradient_shares(Plane({"loss_a": (1.0, [1.0, 1.0])}), [[{"scale": 1.0}]])
    frozen = Plane({"loss_sem_seg": (1.0, [1.0, 1.0])})
    frozen.backbone.requires_grad_(False)
    with pytest.raises(ConfigError, match="FREEZE_AT"):
        measure_gradient_shares(frozen, [[{"scale": 1.0}]])


def test_the_command_line_asks_for_weights():
    result = subprocess.run(
        [
            sys.executable,
            "tools/gradient_shares.py",
            "--config-file",
            "configs/quick/deeplabv3_efficientnet_lite0_car.yaml",
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "MODEL.WEIGHTS is ''" in result.stderr
