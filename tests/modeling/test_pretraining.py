"""Regularizers that train alone before the network's own losses set in."""

import copy

import pytest
import torch
from detectron2.modeling import build_model

from regseg_d2.common.errors import ConfigError
from tests.helpers import small_batch, small_cfg

KEY = "loss_contrast_seg_contrast"
UNTIL = "REGULARIZERS__ContrastSeg__UNTIL_ITER"


def make_model(**keys):
    torch.manual_seed(0)
    return build_model(
        small_cfg("FCN", ["ContrastSeg"], REGULARIZERS__ContrastSeg__ANCHORS="random", **keys)
    ).train()


def gradients(model, batch):
    model.zero_grad()
    torch.manual_seed(1)
    losses = model(batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_contrast_first_then_cross_entropy_alone():
    model, plain = make_model(**{"REGULARIZERS__PRETRAIN_ITERS": 2, UNTIL: 2}), make_model()
    for step in range(4):
        batch = small_batch(seed=step)
        losses, found = gradients(model, batch)
        # The regularizer draws by its count of forwards.
        plain.regularizers["ContrastSeg"].num_forwards.fill_(step)
        expected, _ = gradients(copy.deepcopy(plain), batch)
        now, waiting = (KEY, "loss_sem_seg") if step < 2 else ("loss_sem_seg", KEY)
        assert losses[now].item() == pytest.approx(expected[now].item())
        assert losses[waiting].item() == 0.0
        # No parameter is unused, and the classifier learns from the cross entropy alone.
        assert all(torch.isfinite(gradient).all() for gradient in found.values())
        assert (found["sem_seg_head.predictor.weight"].abs().max() > 0) == (step >= 2)
        contrasted = [g.abs().max() > 0 for name, g in found.items() if name.startswith("regularizers.")]
        assert contrasted and any(contrasted) == (step < 2)


def test_a_resumed_run_is_at_the_same_place():
    keys = {"REGULARIZERS__PRETRAIN_ITERS": 2}
    model = make_model(**keys)
    for step in range(2):
        assert model(small_batch(seed=step))["loss_sem_seg"].item() == 0.0
    resumed = make_model(**keys)
    resumed.load_state_dict(model.state_dict())
    assert resumed(small_batch(seed=2))["loss_sem_seg"].item() > 0


def test_forwards_of_accumulated_steps_are_counted():
    cfg = small_cfg("FCN", ["CAR"], REGULARIZERS__PRETRAIN_ITERS=1, SOLVER__ACCUM_STEPS=2)
    model = build_model(cfg).train()
    assert [model(small_batch(seed=i))["loss_sem_seg"].item() > 0 for i in range(3)] == [False, False, True]


@pytest.mark.parametrize(("names", "iters"), [([], 5), (["CAR"], -1)])
def test_nothing_to_train_with(names, iters):
    with pytest.raises(ConfigError, match="PRETRAIN_ITERS is"):
        build_model(small_cfg("FCN", names, REGULARIZERS__PRETRAIN_ITERS=iters))
