"""What the base of all regularizers promises: weights, state, the warning of losses that are zero."""

import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from regseg_d2.regularizers import Regularizer, RegularizerInput
from tests.helpers import observed

TAP = "head:in"


class Scripted(Regularizer):
    """Two losses whose values are given forward by forward."""

    terms = {"pull": 1.0, "push": 2.0}

    def __init__(self, values=(), diagnostics_period=20, **common):
        super().__init__(3, feature_tap=TAP, **common)
        observed(self, diagnostics_period)
        self.values = list(values)
        self.updates = 0
        self.seen = []

    def losses(self, inputs):
        values = self.values.pop(0) if self.values else (1.0, 1.0)
        feature = inputs.feature(TAP)
        self.seen.append((torch.is_autocast_enabled("cpu"), feature.dtype))
        terms = {term: feature.mean() * 0 + value for term, value in zip(self.terms, values, strict=True)}
        return terms, len(self.seen)

    def update_state(self, inputs, step):
        assert step == len(self.seen)
        assert not torch.is_grad_enabled()
        self.updates += 1

    def diagnostics(self, inputs, step):
        assert step == len(self.seen)
        return {"updates": torch.tensor(self.updates)}


def make_inputs(dtype=torch.float32):
    feature = torch.ones(1, 2, 3, 3, dtype=dtype, requires_grad=True)
    return RegularizerInput({TAP: feature}, torch.zeros(1, 3, 3, dtype=torch.long), 3)


def run(regularizer, count, storage):
    for _ in range(count):
        regularizer(make_inputs())
        storage.step()


def script(*pieces):
    """``(value, count)`` pairs of the term ``pull``; the other one is alive."""
    return [(value, 1.0) for value, count in pieces for _ in range(count)]


def warnings_of(caplog):
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno == logging.WARNING and "exactly zero" in r.getMessage()
    ]


# ------------------------------------------------------------------------------------------- warnings


def test_a_loss_that_is_zero_for_long_is_said_once(caplog):
    regularizer = Scripted(script((0.0, 40)), diagnostics_period=5, warn_zero_steps=12)
    with EventStorage() as storage:
        run(regularizer, 14, storage)
        # Looked at with the diagnostics only: at 10 it was not long enough.
        assert warnings_of(caplog) == []
        run(regularizer, 26, storage)
    (message,) = warnings_of(caplog)
    assert "loss_scripted_pull has been exactly zero for 15 training forwards" in message
    assert "diagnostics scripted/*" in message
    assert repr(TAP) in message
    assert regularizer.zero_streaks.tolist() == [40, 0]


@pytest.mark.parametrize("pause", [1, 7])
@pytest.mark.parametrize("first", [4, 20])
def test_it_is_said_again_when_the_loss_came_back_and_vanished_again(caplog, first, pause):
    pieces = script((0.0, first), (0.5, pause), (0.0, 30))
    regularizer = Scripted(pieces, diagnostics_period=3, warn_zero_steps=3)
    with EventStorage() as storage:
        run(regularizer, first, storage)
        assert len(warnings_of(caplog)) == 1
        run(regularizer, pause + 30, storage)
    assert len(warnings_of(caplog)) == 2


def test_a_streak_that_grows_past_the_first_between_two_looks_is_another_one(caplog):
    regularizer = Scripted(
        script((1.0, 2), (0.0, 8), (0.5, 1), (0.0, 9)), diagnostics_period=10, warn_zero_steps=3
    )
    with EventStorage() as storage:
        run(regularizer, 20, storage)
    assert [message.split(" for ")[1][:2] for message in warnings_of(caplog)] == ["8 ", "9 "]


@pytest.mark.parametrize(
    ("values", "keys", "steps"),
    [
        (script((0.0, 60)), {"warn_zero_steps": 0}, 60),  # switched off
        (script((0.0, 9), (1e-30, 1)) * 5, {"warn_zero_steps": 10}, 50),  # never long enough
        ([(float("nan"), 1.0)] * 50, {"warn_zero_steps": 10}, 50),  # not zero
    ],
)
def test_no_warning_without_a_reason(caplog, values, keys, steps):
    regularizer = Scripted(values, diagnostics_period=1, **keys)
    with EventStorage() as storage:
        run(regularizer, steps, storage)
    assert warnings_of(caplog) == []


def test_both_terms_are_watched_and_the_weight_and_warm_up_do_not_count(caplog):
    regularizer = Scripted(
        [(1.0, 0.0)] * 20, diagnostics_period=10, warn_zero_steps=10, warmup_iters=1000, name="scripted@aux"
    )
    with EventStorage() as storage:
        run(regularizer, 20, storage)
    (message,) = warnings_of(caplog)
    assert "loss_scripted@aux_push" in message


def test_counters_are_in_the_checkpoint(caplog):
    first = Scripted(script((0.0, 8)), diagnostics_period=4, warn_zero_steps=10)
    with EventStorage() as storage:
        run(first, 8, storage)
    assert warnings_of(caplog) == []
    assert {"num_forwards", "zero_streaks"} <= set(first.state_dict())
    resumed = Scripted(script((0.0, 8)), diagnostics_period=4, warn_zero_steps=10)
    resumed.load_state_dict(first.state_dict())
    with EventStorage(8) as storage:
        run(resumed, 8, storage)
    (message,) = warnings_of(caplog)
    assert "zero for 12 training forwards" in message


def test_forwards_without_gradient_do_not_count():
    regularizer = Scripted(script((0.0, 6)))
    regularizer(make_inputs())
    with torch.no_grad():
        regularizer(make_inputs())
    regularizer.eval()
    regularizer(make_inputs())
    assert regularizer.zero_streaks.tolist() == [1, 0]
    assert regularizer.num_forwards.item() == 1
    assert regularizer.updates == 1


def test_without_an_event_storage_it_counts_all_the_same(caplog):
    regularizer = Scripted(script((0.0, 3)), diagnostics_period=1, warn_zero_steps=1)
    for _ in range(3):
        regularizer(make_inputs())
    assert regularizer.zero_streaks.tolist() == [3, 0]
    assert warnings_of(caplog) == []


# --------------------------------------------------------------------------------------------- forward


def test_diagnostics_are_recorded_by_name_and_period():
    regularizer = Scripted(diagnostics_period=4, name="scripted@aux")
    with EventStorage() as storage:
        run(regularizer, 3, storage)
        assert storage.latest() == {}
        run(regularizer, 6, storage)
        assert storage.latest() == {
            "unweighted/loss_scripted@aux_pull": (1.0, 7),
            "unweighted/loss_scripted@aux_push": (1.0, 7),
            "scripted@aux/updates": (8.0, 7),
        }


def test_a_weight_of_zero_switches_a_term_off_and_none_is_left():
    regularizer = Scripted(weights={"pull": 0.0, "push": 0.5})
    assert regularizer(make_inputs()).keys() == {"loss_scripted_push"}
    nothing = Scripted(weights={"pull": 0.0, "push": 0.0}, diagnostics_period=1)
    with EventStorage() as storage:
        run(nothing, 2, storage)
    assert nothing.loss_keys == ()
    assert nothing(make_inputs()) == {}


def test_losses_are_computed_in_float32_with_autocast_off():
    regularizer = Scripted()
    with torch.autocast("cpu", torch.bfloat16):
        result = regularizer(make_inputs(torch.bfloat16))
    assert regularizer.seen == [(False, torch.float32)]
    assert result["loss_scripted_push"].dtype == torch.float32
    assert result["loss_scripted_push"].item() == 2.0


def test_an_own_parameter_that_no_loss_uses_still_gets_a_gradient():
    regularizer = Scripted()
    regularizer.layer = nn.Linear(2, 2)
    regularizer(make_inputs())["loss_scripted_pull"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in regularizer.parameters())
