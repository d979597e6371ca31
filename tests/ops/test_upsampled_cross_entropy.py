"""Cross entropy of upsampled logits against slow float64 loops and against torch's two operations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regseg_d2.ops import upsampled_cross_entropy as module
from regseg_d2.ops.upsampled_cross_entropy import upsampled_cross_entropy, upsampled_pixel_losses

K, VOID = 4, 255
SIZES = {
    "multiple": ((3, 2), (12, 16)),
    "no multiple": ((3, 4), (7, 9)),
    "same": ((4, 5), (4, 5)),
    "smaller": ((6, 7), (3, 2)),
    "smaller and larger": ((6, 3), (4, 10)),
    "one place": ((1, 1), (3, 5)),
    "one pixel": ((4, 3), (1, 1)),
}


def slow_losses(logits, targets):
    """Losses of all pixels in a flat list, bilinear weights by their definition."""
    (height, width), (out_height, out_width) = logits.shape[2:], targets.shape[1:]

    def neighbours(place, in_size, out_size):
        source = max((place + 0.5) * in_size / out_size - 0.5, 0.0)
        lower = math.floor(source)
        return [(lower, 1 - (source - lower)), (min(lower + 1, in_size - 1), source - lower)]

    losses = []
    for n in range(len(targets)):
        for i in range(out_height):
            for j in range(out_width):
                z = torch.zeros(logits.shape[1], dtype=logits.dtype)
                for y, y_share in neighbours(i, height, out_height):
                    for x, x_share in neighbours(j, width, out_width):
                        z = z + y_share * x_share * logits[n, :, y, x]
                label = int(targets[n, i, j])
                losses.append(z.sum() * 0 if label == VOID else torch.logsumexp(z, 0) - z[label])
    return torch.stack(losses).view(targets.shape)


def plain_losses(logits, targets, ignore_value=VOID):
    full = F.interpolate(logits, size=targets.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, targets, ignore_index=ignore_value, reduction="none")


def example(in_size=(3, 4), out_size=(7, 9), batch=2, classes=K, dtype=torch.float64, seed=0):
    """Logits, labels of which some are void, and weights that are zero there."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, *in_size, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, classes, (batch, *out_size), generator=generator)
    if targets[0].numel() > 1:
        targets[0, -1] = VOID
    weights = torch.rand(targets.shape, dtype=torch.float64, generator=generator) * (targets != VOID)
    return logits.to(dtype).requires_grad_(True), targets, weights.to(dtype)


@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradient_against_slow_loops(size):
    logits, targets, weights = example(*SIZES[size])
    total = upsampled_cross_entropy(logits, targets, weights, VOID)
    expected_losses = slow_losses(logits, targets)
    expected = (expected_losses * weights).sum()
    torch.testing.assert_close(total, expected, rtol=1e-11, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (total, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    losses = upsampled_pixel_losses(logits, targets, VOID)
    assert not losses.requires_grad
    torch.testing.assert_close(losses, expected_losses.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_gradcheck(size):
    logits, targets, weights = example(*SIZES[size], batch=1)
    assert torch.autograd.gradcheck(lambda x: upsampled_cross_entropy(x, targets, weights, VOID), logits)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("classes", "in_size", "out_size"), [(150, (9, 20), (72, 160)), (19, (8, 9), (61, 70))]
)
def test_float32_equals_torchs_two_operations(classes, in_size, out_size, memory_format):
    logits, targets, _ = example(in_size, out_size, batch=3, classes=classes, dtype=torch.float32)
    logits = logits.detach().contiguous(memory_format=memory_format).requires_grad_(True)
    valid = targets != VOID
    # More than one tile each way.
    assert out_size[1] > module.CPU_TILE_COLUMNS
    assert classes * module.CPU_TILE_COLUMNS * out_size[0] * 3 > module.CPU_TILE_ELEMENTS / 2
    loss = upsampled_cross_entropy(logits, targets, valid, VOID) / valid.sum()
    expected = F.cross_entropy(
        F.interpolate(logits, size=out_size, mode="bilinear", align_corners=False),
        targets,
        ignore_index=VOID,
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(value, logits)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("in_size", [(5, 13), (10, 26), (37, 9)])
def test_tiles_of_any_size_give_the_same(in_size):
    logits, targets, weights = example(in_size, (20, 90), batch=3)
    results = []
    # One row of one image; some rows; all rows of one image, of two, of all.
    for rows in (1, 7, 20, 40, 60):
        total = upsampled_cross_entropy(
            logits, targets, weights, VOID, tile_elements=rows * K * module.CPU_TILE_COLUMNS
        )
        results.append((total, torch.autograd.grad(total, logits)[0]))
    for total, gradient in results[1:]:
        torch.testing.assert_close(total, results[0][0], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-10, atol=1e-13)


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


def test_the_upsampled_logits_are_never_held():
    logits, targets, weights = example((8, 8), (64, 64), classes=100, dtype=torch.float32)
    pixels = targets.numel()

    def largest(loss):
        with LargestTensor() as recorded:
            loss().backward()
        return recorded.elements

    assert largest(lambda: (plain_losses(logits, targets) * weights).sum()) >= 100 * pixels
    assert largest(
        lambda: upsampled_cross_entropy(logits, targets, weights, VOID, tile_elements=2**14)
    ) <= max(2**14, logits.numel(), pixels)


def test_gradient_follows_what_the_loss_is_multiplied_by():
    logits, targets, weights = example()
    once, often = (
        torch.autograd.grad(factor * upsampled_cross_entropy(logits, targets, weights, VOID), logits)[0]
        for factor in (1.0, 1000.0)
    )
    torch.testing.assert_close(often, 1000 * once)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scaled_loss_of_half_precision_logits(dtype):
    """A gradient scaler's factor reaches gradients that are too small for float16 by themselves."""
    logits, targets, weights = example(dtype=torch.float32)
    half = logits.detach().to(dtype).requires_grad_(True)
    full = half.detach().float().requires_grad_(True)
    weights = 1e-8 * weights
    total = upsampled_cross_entropy(half, targets, weights, VOID)
    assert total.dtype == torch.float32
    (2.0**20 * total).backward()
    upsampled_cross_entropy(full, targets, weights, VOID).backward()
    assert half.grad.dtype == dtype
    assert half.grad.abs().max() > 0
    torch.testing.assert_close(half.grad.float(), 2.0**20 * full.grad, rtol=1e-2, atol=1e-4)


def test_autocast_changes_nothing():
    logits, targets, weights = example(dtype=torch.float32)
    expected = upsampled_cross_entropy(logits, targets, weights, VOID)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = upsampled_cross_entropy(logits, targets, weights, VOID)
    assert torch.equal(total, expected)
    assert torch.equal(*(torch.autograd.grad(value, logits)[0] for value in (total, expected)))


@pytest.mark.parametrize("why", ["no_grad", "frozen"])
def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch, why):
    logits, targets, weights = example()
    expected = upsampled_cross_entropy(logits, targets, weights, VOID).detach()
    given_weights = []
    sweep_band = module._sweep_band

    def spy(*args):
        given_weights.append(args[4])
        sweep_band(*args)

    monkeypatch.setattr(module, "_sweep_band", spy)
    with torch.set_grad_enabled(why == "frozen"):
        total = upsampled_cross_entropy(logits.requires_grad_(why == "no_grad"), targets, weights, VOID)
    # Without weights there is no gradient to compute.
    assert given_weights == [None] * len(given_weights) != []
    assert not total.requires_grad
    assert torch.equal(total, expected)


def test_void_pixels_have_no_gradient():
    logits, targets, _ = example((4, 4), (16, 16))
    targets[:, :, 8:] = VOID
    valid = targets != VOID
    upsampled_cross_entropy(logits, targets, valid, VOID).backward()
    assert logits.grad[..., 3].abs().max() == 0
    assert logits.grad[..., :2].abs().min() > 0


def test_all_void_is_an_attached_zero():
    logits, targets, _ = example(dtype=torch.bfloat16)
    targets.fill_(VOID)
    total = upsampled_cross_entropy(logits, targets, targets != VOID, VOID)
    total.backward()
    assert total.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert torch.equal(upsampled_pixel_losses(logits, targets, VOID), torch.zeros(targets.shape))


@pytest.mark.parametrize("ignore_value", [-1, 0, 2, 255])
def test_any_void_label(ignore_value):
    logits, targets, _ = example()
    targets = torch.where(targets == VOID, ignore_value, targets)
    losses = upsampled_pixel_losses(logits, targets, ignore_value)
    torch.testing.assert_close(losses, plain_losses(logits, targets, ignore_value).detach())


@pytest.mark.parametrize("label", [-1, K, 254])
def test_a_label_that_is_no_class_is_an_error(label):
    logits, targets, weights = example()
    targets[1, 2, 3] = label
    with pytest.raises(IndexError, match=f"label {label} is no class: expected 0 to 3, or 255 for void"):
        upsampled_cross_entropy(logits, targets, weights, VOID)
    with pytest.raises(IndexError, match="no class"):
        upsampled_pixel_losses(logits, targets, VOID)


def test_shapes_that_do_not_match_are_errors():
    logits, targets, weights = example()
    with pytest.raises(ValueError, match=r"logits are \(2, 4, 3, 4\) and labels \(1, 7, 9\)"):
        upsampled_cross_entropy(logits, targets[:1], weights, VOID)
    with pytest.raises(ValueError, match=r"expected \(N, K, h, w\)"):
        upsampled_pixel_losses(logits[0], targets, VOID)


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_large_logits_do_not_overflow(scale):
    logits, targets, weights = example(dtype=torch.float32)
    logits = (scale * logits.detach()).requires_grad_(True)
    total = upsampled_cross_entropy(logits, targets, weights, VOID)
    expected = (plain_losses(logits.double(), targets) * weights).sum()
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    assert torch.autograd.grad(total, logits)[0].isfinite().all()


def test_nan_is_not_hidden():
    logits, targets, weights = example()
    with torch.no_grad():
        logits[0, 1, 1, 1] = math.nan
    assert upsampled_cross_entropy(logits, targets, weights, VOID).isnan()


def test_same_bits_each_time():
    logits, targets, weights = example((8, 20), (64, 160), classes=19, dtype=torch.float32)
    first, second = (
        torch.autograd.grad(upsampled_cross_entropy(logits, targets, weights, VOID), logits)[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_second_derivative_is_an_error():
    logits, targets, weights = example()
    total = upsampled_cross_entropy(logits, targets, weights, VOID)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, logits, create_graph=True)


def test_backward_twice_with_a_kept_graph():
    logits, targets, weights = example()
    total = upsampled_cross_entropy(logits, targets, weights, VOID)
    first = torch.autograd.grad(2 * total, logits, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], first / 2)
