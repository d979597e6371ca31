"""CAR's self-attention: its three relations of query and key, by hand."""

import pytest
import torch

from regseg_d2.common.errors import ConfigError
from regseg_d2.modeling.heads import SelfAttention


def make(query_key="shared", key_channels=3):
    context = SelfAttention(
        in_channels=5, out_channels=8, key_channels=key_channels, query_key=query_key, norm="BN"
    )
    return context.double().eval()


@pytest.mark.parametrize("query_key", ["shared", "shared_start", "separate"])
def test_by_hand(query_key):
    context = make(query_key)
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    block = context.before(x)
    key = context.key(block).flatten(2)
    query = key if query_key == "shared" else context.query(block).flatten(2)
    # Neither scale nor factor: weights[n, i, j] of pixel j for pixel i.
    weights = torch.einsum("nci,ncj->nij", query, key).exp()
    weights = weights / weights.sum(dim=2, keepdim=True)
    attended = torch.einsum("nij,ncj->nci", weights, context.value(block).flatten(2))
    features, side_logits = context(x)
    assert side_logits == {}
    torch.testing.assert_close(features, block + attended.view_as(block), rtol=1e-10, atol=1e-10)


def test_relations_of_query_and_key():
    shared, start, separate = (make(name) for name in ("shared", "shared_start", "separate"))
    assert {key for key in shared.state_dict() if key.startswith("query")} == set()
    assert torch.equal(start.query.weight, start.key.weight)
    assert start.query.weight.data_ptr() != start.key.weight.data_ptr()
    assert not torch.equal(separate.query.weight, separate.key.weight)


def test_what_starts_the_same_does_not_stay_the_same():
    context = make("shared_start").train()
    optimizer = torch.optim.SGD(context.parameters(), lr=1.0)
    features, _ = context(torch.randn(2, 5, 3, 4, dtype=torch.float64))
    (features * torch.randn_like(features)).sum().backward()
    optimizer.step()
    assert not torch.equal(context.query.weight, context.key.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_key": "tied"}, r"ATTENTION_QUERY_KEY is 'tied'; expected one of .*shared_start"),
        ({"key_channels": 0}, r"ATTENTION_KEY_CHANNELS is 0; expected 1 or more"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
