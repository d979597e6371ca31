"""Run-length codes: the same masks as pycocotools, and an error instead of its arbitrary pixels."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from regseg_d2.dataset_tools.run_length import decode_runs


def masks():
    rng = np.random.default_rng(0)
    yield np.zeros((5, 7), bool)
    yield np.ones((5, 7), bool)
    yield np.arange(400 * 300).reshape(400, 300) % 7919 < 3000
    for share in (0.001, 0.1, 0.5, 0.9):
        for size in ((1, 1), (1, 300), (301, 1), (37, 53)):
            yield rng.random(size) < share


def test_masks_are_those_of_pycocotools():
    found = 0
    for mask in masks():
        code = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        for counts in (code["counts"], code["counts"].decode()):
            np.testing.assert_array_equal(decode_runs(counts, mask.shape), mask)
        flat = mask.ravel(order="F")
        changes = np.flatnonzero(np.diff(np.r_[False, flat])).tolist()
        np.testing.assert_array_equal(
            decode_runs(np.diff([0, *changes, flat.size]).tolist(), mask.shape), mask
        )
        found += mask.any()
    assert found > 8


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "cut off"),
        ("n", "cut off"),
        ("n\x7f", "no code has"),
        ("é", "no code has"),
        ("5", "do not add up to 5 x 7"),
        ("oooooooo0", "more than 35 bits"),
        ("`1OO", "whole numbers from 0"),
        ([], "whole numbers|add up"),
        ([35, -1, 1], "whole numbers"),
        ([34.0, 1.0], "whole numbers"),
        ([[35]], "whole numbers"),
        (["35"], "whole numbers"),
        ([30, 4], "do not add up"),
        ([2**63 - 1, 2**63 - 1, 37], "do not add up"),
        (None, "NoneType; expected text or a list"),
    ],
)
def test_other_codes_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        decode_runs(counts, (5, 7))


def test_every_damage_of_a_code_is_an_error_or_a_mask():
    rng = np.random.default_rng(1)
    counts = coco_mask.encode(np.asfortranarray(rng.random((40, 30)) < 0.3, np.uint8))["counts"]
    refused = 0
    for _ in range(500):
        damaged = bytearray(counts)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        try:
            assert decode_runs(bytes(damaged), (40, 30)).shape == (40, 30)
        except ValueError:
            refused += 1
    assert refused > 400
