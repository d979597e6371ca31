"""Batch norm over processes: equal to one process with all of their pixels, whatever each of them holds."""

import pytest
import torch
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from detectron2.utils import comm
from timm.layers import BatchNormAct2d
from torch import nn

from regseg_d2.modeling.norms import convert_batch_norm
from regseg_d2.modeling.process_batch_norm import ProcessBatchNorm2d, ProcessBatchNormAct2d, make_exact
from tests.distributed.launching import run_processes
from tests.helpers import small_batch, small_cfg

C = 5
# Batch, height and width on each process.
SHAPES = {
    "uneven": [(2, 3, 4), (1, 7, 2), (3, 1, 1)],
    "one without a pixel": [(2, 3, 4), (0, 3, 4), (1, 2, 2)],
    "one pixel each": [(1, 1, 1), (1, 1, 1), (1, 1, 1)],
}


def pieces(shapes, dtype, offset=0.0):
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(n, C, h, w, generator=generator, dtype=torch.float64) + offset for n, h, w in shapes]
    return [piece.to(dtype) for piece in draw]


def upstream(shapes, dtype):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, C, h, w, generator=generator, dtype=torch.float64).to(dtype) for n, h, w in shapes]


def make_norm(dtype, cls=nn.BatchNorm2d):
    torch.manual_seed(2)
    norm = cls(C, momentum=0.3).to(dtype)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    return norm


def one_step(shapes, dtype):
    norm = make_norm(dtype, NaiveSyncBatchNorm)
    make_exact(norm)
    assert type(norm) is ProcessBatchNorm2d
    x = pieces(shapes, dtype)[comm.get_rank()].requires_grad_()
    y = norm(x)
    y.backward(upstream(shapes, dtype)[comm.get_rank()])
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.state_dict()


@pytest.mark.parametrize("case", SHAPES)
def test_equal_to_one_process_with_all_pixels(case, tmp_path):
    shapes = SHAPES[case]
    results = run_processes(one_step, 3, tmp_path, shapes, torch.float64)
    norm = make_norm(torch.float64)
    # As one row of pixels: batch norm does not look at their places.
    xs, gradients = (
        [p.permute(1, 0, 2, 3).flatten(1) for p in made(shapes, torch.float64)] for made in (pieces, upstream)
    )
    x = torch.cat(xs, dim=1)[None, :, :, None].requires_grad_()
    y = norm(x)
    y.backward(torch.cat(gradients, dim=1)[None, :, :, None])
    counts = [piece.shape[1] for piece in xs]
    for rank, (own_y, own_gradient, *_, state) in enumerate(results):
        for ours, whole in ((own_y, y), (own_gradient, x.grad)):
            expected = whole[0, :, :, 0].split(counts, dim=1)[rank]
            torch.testing.assert_close(ours.permute(1, 0, 2, 3).flatten(1), expected, rtol=1e-10, atol=1e-12)
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-10, atol=1e-12)
        assert all(torch.equal(state[key], results[0][-1][key]) for key in state)
    for position, parameter in ((2, norm.weight), (3, norm.bias)):
        torch.testing.assert_close(sum(result[position] for result in results), parameter.grad)


def far_from_zero(dtype):
    norm = make_norm(torch.float32, NaiveSyncBatchNorm)
    make_exact(norm)
    shapes = [(2, 8, 8), (2, 8, 8)]
    x = pieces(shapes, torch.float32, offset=1000.0)[comm.get_rank()].to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = norm(x)
    y.backward(torch.ones_like(y))
    return y.detach(), x.detach(), x.grad, norm.running_var


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_far_from_zero_and_in_bf16(dtype, tmp_path):
    """E[x^2] - E[x]^2 has no digit left here."""
    results = run_processes(far_from_zero, 2, tmp_path, dtype)
    x = torch.cat([result[1] for result in results]).double()
    expected = (x - x.mean((0, 2, 3), keepdim=True)) / (
        x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    norm = make_norm(torch.float32)
    expected = expected * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    y = torch.cat([result[0] for result in results])
    assert y.dtype == dtype and all(result[2].isfinite().all() for result in results)
    torch.testing.assert_close(y.double(), expected, rtol=1e-2, atol=1e-3 if dtype == torch.float32 else 2e-2)
    torch.testing.assert_close(results[0][3].double(), 0.7 + 0.3 * x.var((0, 2, 3)), rtol=1e-3, atol=1e-5)


def too_few():
    norm = make_norm(torch.float32, NaiveSyncBatchNorm)
    make_exact(norm)
    try:
        norm(torch.zeros(1 - comm.get_rank(), C, 1, 1))
    except ValueError as error:
        return str(error)
    return ""


def test_one_pixel_alone_is_refused_on_every_process(tmp_path):
    assert all("more than one pixel" in message for message in run_processes(too_few, 2, tmp_path))


def bf16_steps():
    torch.manual_seed(0)
    model = build_model(small_cfg("ASPP", ["CAR", "PNE"], SEM_SEG_HEAD__NORM="auto")).train()
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = model(small_batch(seed=2 * step + comm.get_rank()))
        sum(result.values()).backward()
        optimizer.step()
        losses.append(sum(result.values()).item())
    return kinds, losses, {k: v for k, v in model.state_dict().items() if "running" in k}


def test_a_network_trains_in_bf16_on_two_processes(tmp_path):
    results = run_processes(bf16_steps, 2, tmp_path)
    for kinds, losses, _ in results:
        assert kinds == {ProcessBatchNorm2d, ProcessBatchNormAct2d} or kinds == {ProcessBatchNorm2d}
        assert torch.tensor(losses).isfinite().all() and len(set(losses)) == 6
    first, second = (state for *_, state in results)
    shared = [key for key in first if "regularizers" not in key]
    assert shared and all(torch.equal(first[key], second[key]) for key in shared)


def test_frozen_layers_stay_the_same_objects():
    network = convert_batch_norm(
        nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C), BatchNormAct2d(C)), "naiveSyncBN"
    )
    before, parameters = list(network), list(network.parameters())
    make_exact(network)
    assert all(a is b for a, b in zip(before, network, strict=True))
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    assert [type(m) for m in network][1:] == [ProcessBatchNorm2d, ProcessBatchNormAct2d]
    plain = nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C), BatchNormAct2d(C))
    plain.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 4, 4)
    for mode in (True, False):
        torch.testing.assert_close(network.train(mode)(x), plain.train(mode)(x))
