"""Labels without full-size scores: the very bits of Detectron2's own steps, whatever is held at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import sem_seg_postprocess

from regseg_d2.evaluation.inference import maps as maps_module
from regseg_d2.evaluation.inference.argmax import argmax_classes, argmax_of_maps
from regseg_d2.evaluation.inference.maps import (
    AveragedTiles,
    MeanProbabilities,
    ResizedMaps,
    UpsampledLogits,
    log_sum_exp,
)
from regseg_d2.evaluation.inference.sliding import window_starts

CHUNKS = (1, 30_000, 200_000, 1 << 30)


def random_case(generator):
    """Logits of some layout, the stride, the image's size and the size of the output."""

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    classes = pick(1, 2, 3, 4, 5, 7, 16, 17, 19, 20, 33, 150, 300)
    height, width = (number(1, 8 if classes > 100 else 20) for _ in range(2))
    stride = pick(1, 2, 4, 8, 16)
    logits = torch.randn(1, classes, height, width, generator=generator)
    if pick(True, False):
        logits = logits.round()  # ties
    if pick(True, False):
        logits = logits.contiguous(memory_format=torch.channels_last)
    image = tuple(number(stride * (side - 1) + 1, stride * side) for side in (height, width))
    return logits, stride, image, pick(image, (number(1, 180), number(1, 180)))


@pytest.mark.parametrize("seed", range(4))
def test_chunks_are_detectron2s_scores_bit_for_bit(seed, monkeypatch):
    generator = torch.Generator().manual_seed(seed)
    shrunk = 0
    for _ in range(40):
        logits, stride, image, output = random_case(generator)
        full = F.interpolate(logits, scale_factor=stride, mode="bilinear", align_corners=False)
        plain = sem_seg_postprocess(full[0], image, *output)
        maps = ResizedMaps(UpsampledLogits(logits, image, stride), output)
        shrunk += output[0] < image[0]
        for chunk in CHUNKS:
            monkeypatch.setattr(maps_module, "CHUNK_BYTES", chunk)
            assert torch.equal(maps.all_classes(), plain)
            assert torch.equal(argmax_of_maps(maps).long(), plain.argmax(dim=0))
    assert shrunk > 1


def test_chunks_keep_to_their_size(monkeypatch):
    monkeypatch.setattr(maps_module, "CHUNK_BYTES", 4 * 300 * 200 * 5)
    maps = UpsampledLogits(torch.zeros(1, 22, 30, 20), (300, 200), 10)
    # Three classes would make the kernel of pictures: they go with the chunk before.
    assert [(c.start, c.stop) for c in maps.chunks()] == [(0, 5), (5, 10), (10, 15), (15, 22)]
    monkeypatch.setattr(maps_module, "CHUNK_BYTES", 1)
    lengths = [c.stop - c.start for c in maps.chunks()]
    assert lengths == [1] * 18 + [4]


def test_a_stride_that_is_no_whole_number(monkeypatch):
    """A pyramid of patches of 14 begins with 3.5: its features are multiples of 4."""
    logits = torch.randn(1, 40, 24, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(maps_module, "CHUNK_BYTES", 4 * 84 * 56 * 9)
    full = F.interpolate(logits, scale_factor=3.5, mode="bilinear", align_corners=False)
    maps = UpsampledLogits(logits, (80, 51), 3.5)
    assert full.shape[-2:] == (84, 56) and len(list(maps.chunks())) == 5
    assert torch.equal(maps.all_classes(), full[0, :, :80, :51])


@pytest.mark.parametrize("classes", [1, 3, 200, 256, 257, 400])
@pytest.mark.parametrize(
    "kind", ["random", "ties", "equal", "nan", "infinite", "float64", "bfloat16", "strided"]
)
def test_fast_argmax_is_argmax(classes, kind):
    generator = torch.Generator().manual_seed(classes)
    scores = torch.randn(classes, 13, 700, generator=generator)
    draw = torch.rand(scores.shape, generator=generator)
    if kind == "ties":
        scores = scores.round()
    elif kind == "equal":
        scores = torch.full_like(scores, -torch.inf)
    elif kind == "nan":
        scores[draw < 0.01] = torch.nan
        scores[draw > 0.99] = torch.inf
    elif kind == "infinite":
        scores[draw < 0.5] = -torch.inf
        scores[draw > 0.99] = torch.inf
    elif kind in ("float64", "bfloat16"):
        scores = scores.to(getattr(torch, kind))
    elif kind == "strided":
        scores = scores.permute(0, 2, 1)[:, ::3]
    labels = argmax_classes(scores)
    assert labels.dtype == (torch.uint8 if classes <= 256 else torch.int32)
    assert torch.equal(labels.long(), scores.argmax(dim=0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fast_argmax_on_a_gpu():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(150, 200, 300, generator=generator).round().cuda()
    assert torch.equal(argmax_classes(scores).long(), scores.argmax(dim=0))
    logits = torch.randn(1, 150, 25, 40, generator=generator).cuda()
    plain = F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)[0]
    assert torch.equal(argmax_of_maps(UpsampledLogits(logits, (200, 320), 8)).long(), plain.argmax(dim=0))


def test_nan_in_a_later_chunk(monkeypatch):
    logits = torch.randn(1, 9, 20, 30, generator=torch.Generator().manual_seed(0))
    logits[0, 7, 4:9] = torch.nan
    logits[0, 8, 2:5] = torch.nan
    plain = F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)[0]
    monkeypatch.setattr(maps_module, "CHUNK_BYTES", 1)
    labels = argmax_of_maps(UpsampledLogits(logits, (160, 240), 8))
    assert set(labels.unique().tolist()) >= {7, 8}
    assert torch.equal(labels.long(), plain.argmax(dim=0))


def reference_starts(size, window, stride):
    """Windows in steps until one reaches the end, which is then moved back to it."""
    starts, at = [], 0
    while True:
        if at + window >= size:
            return [*starts, max(size - window, 0)]
        starts.append(at)
        at += stride


def test_windows_cover_every_pixel():
    for size in range(1, 40):
        for window in range(1, 14):
            for stride in range(1, window + 1):
                starts = window_starts(size, window, stride)
                assert starts == reference_starts(size, window, stride)
                covered = {at for start in starts for at in range(start, start + min(window, size))}
                assert covered == set(range(size))


@pytest.mark.parametrize("seed", range(6))
def test_tiles_are_averaged_as_in_a_loop_over_pixels(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(5, 40, 2).tolist()
    window = [int(min(rng.integers(2, 20), side)) for side in (height, width)]
    stride = [int(rng.integers(1, side + 1)) for side in window]
    corners, tiles, expected = [], [], np.zeros((5, height, width))
    count = np.zeros((height, width))
    for top in reference_starts(height, window[0], stride[0]):
        for left in reference_starts(width, window[1], stride[1]):
            values = rng.normal(size=(5, *window)).astype(np.float32)
            corners.append((top, left))
            tiles.append(UpsampledLogits(torch.from_numpy(values)[None], tuple(window)))
            for y in range(window[0]):
                for x in range(window[1]):
                    expected[:, top + y, left + x] += values[:, y, x]
                    count[top + y, left + x] += 1
    maps = AveragedTiles(tiles, corners, (height, width))
    np.testing.assert_allclose(maps.all_classes().numpy(), expected / count, rtol=0, atol=1e-6)
    scores = maps.all_classes()
    monkeypatch.setattr(maps_module, "CHUNK_BYTES", 1)
    assert torch.equal(maps.all_classes(), scores)
    assert torch.equal(argmax_of_maps(maps).long(), scores.argmax(dim=0))


def test_probabilities_are_the_softmax_averaged(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    # As large as logits can be without a number of float32 that overflows.
    views = [10.0**power * torch.randn(1, 23, 6, 11, generator=generator) for power in (0, 2, 30)]
    maps = [ResizedMaps(UpsampledLogits(view, (41, 86), 8), (50, 90)) for view in views]
    expected = np.zeros((23, 50, 90))
    for index, view in enumerate(maps):
        scores = view.all_classes().double().numpy()
        exponentials = np.exp(scores - scores.max(axis=0))
        probabilities = exponentials / exponentials.sum(axis=0)
        expected += probabilities[..., ::-1] if index % 2 else probabilities
    mean = MeanProbabilities([(maps[0], maps[1]), (maps[2], None)])
    scores = mean.all_classes()
    np.testing.assert_allclose(scores.numpy(), expected / 3, rtol=2e-5, atol=1e-6)
    assert torch.equal(argmax_of_maps(mean).long(), scores.argmax(dim=0))


def test_normalizer_takes_classes_that_are_ruled_out():
    logits = torch.randn(1, 6, 12, 20, generator=torch.Generator().manual_seed(0))
    logits[:, :2] = -torch.inf
    expected = logits[0].logsumexp(dim=0)
    torch.testing.assert_close(log_sum_exp(UpsampledLogits(logits, (12, 20))), expected)
