"""Moving averages of class centers against a loop over classes."""

import pytest
import torch

from regseg_d2.state.ema_centers import EmaCenters


def test_updates_follow_the_recurrence():
    ema = EmaCenters(3, 2, decay=0.9)
    stored = {}
    generator = torch.Generator().manual_seed(0)
    for step in range(5):
        values = torch.randn(3, 2, generator=generator)
        present = torch.tensor([True, step % 2 == 0, False])
        before = ema.centers.clone()
        blended = ema.blend(values, present)
        assert torch.equal(ema.centers, before)
        ema.update(values, present)
        assert torch.equal(ema.centers, blended)
        for k in range(2):
            if present[k]:
                stored[k] = values[k] if k not in stored else 0.9 * stored[k] + 0.1 * values[k]
    for k, value in stored.items():
        torch.testing.assert_close(ema.centers[k], value)
    assert ema.counts.tolist() == [5, 3, 0]
    assert ema.seen.tolist() == [True, True, False]
    assert ema.centers[2].tolist() == [0, 0]


def test_gradient_flows_through_the_new_share_only():
    ema = EmaCenters(1, 1, decay=0.75)
    ema.update(torch.tensor([[2.0]]), torch.tensor([True]))
    values = torch.tensor([[4.0]], requires_grad=True)
    blended = ema.blend(values, torch.tensor([True]))
    blended.sum().backward()
    assert blended.item() == 2.5
    assert values.grad.item() == 0.25


def test_state_survives_a_checkpoint():
    ema = EmaCenters(2, 2, decay=0.5)
    ema.update(torch.ones(2, 2), torch.tensor([True, False]))
    copy = EmaCenters(2, 2, decay=0.5)
    copy.load_state_dict(ema.state_dict())
    assert copy.counts.tolist() == [1, 0]
    assert torch.equal(copy.centers, ema.centers)


def test_bad_decay():
    with pytest.raises(ValueError, match="1.0"):
        EmaCenters(1, 1, decay=1.0)
