"""Products within groups against loops over rows."""

import pytest
import torch

from regseg_d2.ops import grouped_products
from regseg_d2.ops.grouped_products import log_sums_within_sets, pixel_rows, tile_groups


@pytest.mark.parametrize("channels_last", [False, True])
def test_pixel_rows_and_their_gradient(channels_last):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    maps.requires_grad_(True)
    pixels = torch.tensor([7, 0, 39, 20, 7])
    rows = pixel_rows(maps, pixels)
    for row, pixel in zip(rows, pixels.tolist(), strict=True):
        assert torch.equal(row, maps[pixel // 20, :, pixel % 20 // 5, pixel % 5])
    assert torch.autograd.gradcheck(lambda x: pixel_rows(x, pixels), (maps,))
    assert pixel_rows(maps, pixels[:0]).shape == (0, 3)


@pytest.mark.parametrize("groups", [[], [-1, -1], [0] * 9, [2, -1, 0, 2, 2, 0, 2, -1, 2, 2, 2, 2, 2, 2]])
@pytest.mark.parametrize("size", [1, 3, 4, 32])
def test_tiles_hold_rows_of_one_group_and_give_them_back(groups, size):
    groups = torch.tensor(groups, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(len(groups), 5, dtype=torch.float64, generator=generator, requires_grad=True)
    samples = torch.randn(3, 4, 5, dtype=torch.float64, generator=generator)
    tiles = tile_groups(groups, 3, size)
    assert len(tiles.groups) == len(groups) // size + 3
    products = tiles.products(rows, samples)
    assert products.shape == (len(tiles.groups), size, 4)
    collected = tiles.collect(products.sum(2))
    for row, group, value in zip(rows, groups.tolist(), collected, strict=True):
        expected = (samples[group] @ row).sum() if group >= 0 else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(value, expected)
    in_groups = [
        place for place, group in zip(tiles.places.tolist(), groups.tolist(), strict=True) if group >= 0
    ]
    assert len(set(in_groups)) == len(in_groups)
    if len(groups):
        assert torch.autograd.gradcheck(lambda x: tiles.products(x, samples), (rows,))


@pytest.mark.parametrize("sizes", [[], [1], [3, 1, 1, 40, 70, 2, 1], [1] * 100, [70, 70]])
@pytest.mark.parametrize("num_columns", [1, 5, 100])
@pytest.mark.parametrize("without_set", [0, 33])
@pytest.mark.parametrize("exact", [True, False])
def test_log_sums_within_sets(sizes, num_columns, without_set, exact, monkeypatch):
    if not exact:
        monkeypatch.setattr(grouped_products, "largest", lambda values, limit: limit)
    sets = [7 * index for index, size in enumerate(sizes) for _ in range(size)] + [-1] * without_set
    ranks = [rank for size in sizes for rank in range(size)] + [5] * without_set
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(len(sets), 4, dtype=torch.float64, generator=generator, requires_grad=True)
    columns = torch.randn(len(sets), 4, dtype=torch.float64, generator=generator, requires_grad=True)
    log_sums, means = log_sums_within_sets(
        rows, columns, torch.tensor(sets).long(), torch.tensor(ranks).long(), 71, num_columns
    )
    assert len(log_sums) > len(sets)
    assert torch.isfinite(log_sums).all()
    expected, expected_means = [], []
    for q, own in enumerate(sets[: sum(sizes)]):
        chosen = [j for j, other in enumerate(sets) if other == own and ranks[j] < num_columns]
        products = torch.stack([(rows[q] * columns[j]).sum() for j in chosen])
        expected.append((products.exp().sum() * num_columns / len(chosen)).log())
        expected_means.append(products.mean())
    if not expected:
        assert log_sums.requires_grad
        return
    expected = torch.stack(expected)
    torch.testing.assert_close(log_sums[: len(expected)], expected)
    torch.testing.assert_close(means[: len(expected)], torch.stack(expected_means).detach())
    ours = torch.autograd.grad(log_sums[: len(expected)].square().sum(), (rows, columns))
    theirs = torch.autograd.grad(expected.square().sum(), (rows, columns))
    torch.testing.assert_close(ours, theirs)
