"""Every regularizer on a GPU: the losses and gradients of the CPU, and finite ones in bf16."""

import pytest
import torch
from detectron2.modeling import build_model

from regseg_d2.regularizers import REGULARIZER
from tests.helpers import small_batch, small_cfg

NAMES = sorted(name for name, _ in REGULARIZER)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def losses_and_gradient(name, device, autocast=False):
    torch.manual_seed(0)
    cfg = small_cfg("FCN", [name], SEM_SEG_HEAD__DROPOUT=0.0, DEVICE="cpu")
    model = build_model(cfg).train().to(device)
    batch = [{key: value for key, value in sample.items()} for sample in small_batch()]
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        losses = model(batch)
    sum(losses.values()).backward()
    gradient = next(p.grad for p in model.backbone.parameters() if p.grad is not None)
    return {key: value.item() for key, value in losses.items()}, gradient.cpu()


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_the_cpu(name):
    ours, gradient = losses_and_gradient(name, "cuda")
    expected, on_cpu = losses_and_gradient(name, "cpu")
    assert ours == pytest.approx(expected, rel=2e-3)
    torch.testing.assert_close(gradient, on_cpu, rtol=5e-2, atol=5e-3 * on_cpu.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_bf16_is_finite(name):
    losses, gradient = losses_and_gradient(name, "cuda", autocast=True)
    assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    assert gradient.isfinite().all()
