"""Values that carry their gradients."""

import pytest
import torch

from regseg_d2.ops.known_gradients import with_gradient

TENSOR = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_each_value_has_the_gradient_of_its_part(shape):
    tensor = TENSOR.clone().requires_grad_(True)
    gradients = torch.tensor([[0.5, -1.0], [2.0, 7.0]])
    values = torch.arange(1.0, 1.0 + max(1, torch.Size(shape).numel())).reshape(shape)
    attached = with_gradient(tensor, values, gradients)
    assert torch.equal(attached, values)
    upstream = values + 1
    (result,) = torch.autograd.grad((attached * upstream).sum(), tensor)
    expected = gradients.clone()
    for row in range(2):
        for column in range(2):
            own = (row, column)[: len(shape)]
            expected[row, column] *= upstream[own]
    assert torch.equal(result, expected)


@pytest.mark.parametrize("values", [torch.tensor(1.0), torch.tensor([1.0, 2.0])])
def test_a_second_derivative_is_an_error(values):
    tensor = TENSOR.clone().requires_grad_(True)
    attached = with_gradient(tensor, values, torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(attached.sum(), tensor, create_graph=True)
