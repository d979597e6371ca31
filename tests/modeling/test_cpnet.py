"""CPNet's prior and contexts by hand, position by position, the affinity loss, and both in the head."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import ContextPrior
from regseg_d2.modeling.heads.contexts.cpnet import AffinityLoss
from tests.helpers import IGNORE, NUM_CLASSES, small_batch, small_cfg
from tests.references.labels import labels_at_cells

VOID = 9


def make_prior(**options):
    torch.manual_seed(0)
    defaults = {
        "in_channels": 6,
        "channels": 4,
        "size": (3, 4),
        "kernel_size": 5,
        "num_classes": NUM_CLASSES,
        "ignore_value": IGNORE,
        "affinity_loss_weight": 1.0,
        "norm": "BN",
    }
    return ContextPrior(**{**defaults, **options}).double()


def make_cfg(**overrides):
    return small_cfg(
        "FCN",
        SEM_SEG_HEAD__CONTEXT="ContextPrior",
        SEM_SEG_HEAD__CONCAT_INPUT=True,
        **{"SEM_SEG_HEAD__CPNET_SIZE": [4, 4], **overrides},
    )


def contexts_by_hand(module, x):
    """Section 3.3 on features of the grid's size."""
    values = module.aggregation(x).flatten(2)
    logits = module.prior(module.aggregation(x)).flatten(2)
    same, others = torch.zeros_like(values), torch.zeros_like(values)
    num_positions = values.shape[2]
    for n in range(len(x)):
        for j in range(num_positions):
            for i in range(num_positions):
                # What position j says of position i: channel i at j.
                weight = logits[n, i, j].sigmoid()
                same[n, :, j] += weight * values[n, :, i] / num_positions
                others[n, :, j] += (1 - weight) * values[n, :, i] / num_positions
    same, others = (part.unflatten(2, x.shape[-2:]) for part in (same, others))
    return torch.cat([module.same(same), module.others(others)], dim=1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_contexts_by_hand(memory_format):
    module = make_prior().eval()
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    result, side_outputs = module(x.contiguous(memory_format=memory_format))
    assert side_outputs == {}
    assert result.shape == (2, module.out_channels, 3, 4)
    torch.testing.assert_close(result, contexts_by_hand(module, x))


def test_aggregation_by_hand():
    """Each path is a depthwise convolution with the outer product of its two kernels."""
    aggregation = make_prior().aggregation.eval()
    # Larger than the kernel: at the border an outer product sees what the first of two kernels cuts.
    x = torch.randn(1, 6, 9, 8, dtype=torch.float64)
    reduced = aggregation.reduce(x)
    kernels = [path[0].weight * path[1].weight for path in (aggregation.column_row, aggregation.row_column)]
    expected = sum(F.conv2d(reduced, kernel, padding=2, groups=4) for kernel in kernels)
    assert kernels[0].shape == (4, 1, 5, 5)
    torch.testing.assert_close(aggregation(x), aggregation.norm(expected).relu())


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3), (2, 9), (1, 1)])
def test_features_of_other_sizes_go_through_the_grid(size):
    module = make_prior().eval()
    x = torch.randn(1, 6, *size, dtype=torch.float64)
    values = module.aggregation(x)
    values = F.adaptive_avg_pool2d(values, (min(size[0], 3), min(size[1], 4)))
    values = F.interpolate(values, size=(3, 4), mode="bilinear", align_corners=False)
    module.aggregation.forward = lambda grid: grid
    expected = contexts_by_hand(module, values)
    del module.aggregation.forward
    expected = F.interpolate(expected, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(x)[0], expected)


def affinity_by_hand(logits, labels):
    """Equations 2 to 7 of logits (N, P, P) and labels (N, P), void left out of all pairs."""
    pair_losses, position_losses = [], []
    for image, classes in zip(logits.sigmoid(), labels.tolist(), strict=True):
        valid = [i for i, label in enumerate(classes) if label != VOID]
        for j in valid:
            weights = {i: image[i, j] for i in valid}
            same = [i for i in valid if classes[i] == classes[j]]
            others = [i for i in valid if classes[i] != classes[j]]
            for i in valid:
                pair_losses.append(-(weights[i] if i in same else 1 - weights[i]).log())
            found = sum(weights[i] for i in same)
            loss = -(found / sum(weights.values())).log() - (found / len(same)).log()
            if others:
                loss = loss - (sum(1 - weights[i] for i in others) / len(others)).log()
            position_losses.append(loss)
    return sum(pair_losses) / len(pair_losses) + sum(position_losses) / len(position_losses)


LABELS = {
    "mixed": [[0, 1, 1, 2, 0, 0], [2, 2, 0, 2, 1, 2]],
    "void": [[0, 1, VOID, 2, 0, VOID], [VOID, 2, 0, VOID, 1, 2]],
    "one void image": [[VOID] * 6, [0, 0, 1, 2, 2, 2]],
    "one class": [[1] * 6, [2, VOID, 2, 2, VOID, VOID]],
    "one position": [[VOID] * 5 + [1], [0, 1, 2, 0, 1, 2]],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_affinity_loss_by_hand(labels):
    torch.manual_seed(0)
    logits = (2 * torch.randn(2, 6, 6, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor(labels)
    # Three times the size: the pixel in the middle counts, the others have other labels.
    full = torch.randint(0, 3, (2, 6, 9))
    full[:, 1::3, 1::3] = labels.view(2, 2, 3)
    loss = AffinityLoss((2, 3), 3, VOID)(logits, full)
    expected = affinity_by_hand(logits, labels)
    torch.testing.assert_close(loss, expected)
    gradient, expected_gradient = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(gradient, expected_gradient)


def test_affinity_loss_with_labels_at_corners():
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 6, dtype=torch.float64)
    full = torch.randint(0, 3, (2, 7, 8))
    losses = [AffinityLoss((2, 3), 3, VOID, *rule)(logits, full) for rule in ([], ["center"], ["corner"])]
    center, corner = (labels_at_cells(full, (2, 3), rule).flatten(1) for rule in ("center", "corner"))
    torch.testing.assert_close(losses[0], affinity_by_hand(logits, center))
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], affinity_by_hand(logits, corner))
    assert (losses[0] - losses[2]).abs() > 1e-3
    model = build_model(make_cfg(SEM_SEG_HEAD__CPNET_LABELS="corner"))
    assert model.sem_seg_head._side_losses["affinity"].labels == "corner"


def test_affinity_loss_gradcheck():
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[[0, 1], [1, VOID]]])
    loss = AffinityLoss((2, 2), 3, VOID)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), (logits,))


def test_affinity_loss_is_finite_at_certain_and_wrong_priors():
    labels = torch.tensor([[[0, 1, 2], [1, 2, 2]]])
    equal = (labels.flatten()[:, None] == labels.flatten()).float()[None]
    loss = AffinityLoss((2, 3), 3, VOID)
    right = loss((equal * 2 - 1) * 500, labels)
    logits = ((1 - equal * 2) * 500).requires_grad_()
    wrong = loss(logits, labels)
    wrong.backward()
    assert right == pytest.approx(0, abs=1e-6)
    assert 500 < wrong < 1000
    assert torch.isfinite(logits.grad).all()


def test_affinity_loss_of_a_void_batch_is_a_zero_with_a_gradient():
    logits = torch.randn(2, 6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = AffinityLoss((2, 3), 3, VOID)(logits.bfloat16(), torch.full((2, 8, 9), VOID))
    assert loss == 0
    assert loss.dtype == torch.float32
    loss.backward()
    assert (logits.grad == 0).all()


def test_affinity_loss_is_taken_in_float32():
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 6).bfloat16()
    labels = torch.randint(0, 3, (2, 4, 6))
    loss = AffinityLoss((2, 3), 3, VOID)
    with torch.autocast("cpu", torch.bfloat16):
        result = loss(logits, labels)
    torch.testing.assert_close(result, loss(logits.double(), labels).float())


@pytest.mark.parametrize("labels", ["blocks", "void"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_training(batch_size, labels):
    torch.manual_seed(0)
    model = build_model(make_cfg())
    losses = model(small_batch(batch_size, labels=labels))
    assert set(losses) == {"loss_sem_seg", "loss_sem_seg_affinity"}
    assert all((loss > 0) == (labels == "blocks") for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    # The mixing block reads the feature and both contexts.
    assert (
        model.sem_seg_head.projection.conv.in_channels == model.backbone.output_shape()["res4"].channels + 32
    )
    assert model.eval()(small_batch(1, size=(37, 61)))[0]["sem_seg"].shape == (NUM_CLASSES, 37, 61)


def test_training_teaches_the_prior():
    torch.manual_seed(0)
    model = build_model(make_cfg())
    batch = small_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    history = []
    for _ in range(15):
        loss = model(batch)["loss_sem_seg_affinity"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_the_weight_of_the_side_loss():
    losses = {}
    for weight in (0.5, 1.0):
        torch.manual_seed(0)
        model = build_model(make_cfg(SEM_SEG_HEAD__CPNET_AFFINITY_LOSS_WEIGHT=weight))
        losses[weight] = model(small_batch())["loss_sem_seg_affinity"].item()
    assert losses[0.5] == pytest.approx(0.5 * losses[1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (4,)}, "CPNET_SIZE"),
        ({"size": (4, 1)}, "CPNET_SIZE"),
        ({"size": (5, 5), "norm": "GN", "channels": 32}, "CPNET_SIZE"),
        ({"kernel_size": 4}, "CPNET_KERNEL_SIZE is 4"),
        ({"kernel_size": -1}, "CPNET_KERNEL_SIZE is -1"),
        ({"affinity_loss_weight": -1.0}, "CPNET_AFFINITY_LOSS_WEIGHT is -1.0"),
        ({"labels": "majority"}, "CPNET_LABELS is 'majority'"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make_prior(**options)
