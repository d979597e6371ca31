"""Adaptive pooling as products: torch's own numbers, for any size of the input and of the grid."""

import pytest
import torch
import torch.nn.functional as F

from regseg_d2.apps.export.pooling import PoolingAsProducts, average_pool


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 7), (12, 31)])
@pytest.mark.parametrize("grid", [1, 2, 3, 6, (4, 2), (None, 3)])
def test_products_are_the_averages(size, grid):
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(average_pool(x, grid), F.adaptive_avg_pool2d(x, grid))


def test_mode_replaces_calls_of_modules_and_ends():
    pool, x = torch.nn.AdaptiveAvgPool2d(3), torch.rand(1, 2, 7, 5)
    with torch.profiler.profile() as profile, PoolingAsProducts():
        inside = pool(x)
    operations = {event.key for event in profile.key_averages()}
    assert "aten::matmul" in operations and "aten::adaptive_avg_pool2d" not in operations
    torch.testing.assert_close(inside, pool(x))
