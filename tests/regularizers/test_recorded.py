"""Every method gives the numbers that it gave when they were recorded."""

import json

import pytest

from regseg_d2.regularizers import REGULARIZER
from tests.regularizers.recorded import CASES, FILE, STEPS, run_case

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


def test_all_methods_were_recorded():
    assert {name for name, _ in REGULARIZER} >= set(CASES) == set(RECORDED)
    assert all(RECORDED[method].keys() == cases.keys() for method, cases in CASES.items())


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in CASES for name in CASES[method]])
def test_numbers_are_those_that_were_recorded(method, name):
    steps, recorded = run_case(method, name), RECORDED[method][name]
    assert len(steps) == len(recorded) == STEPS
    for numbers, expected in zip(steps, recorded, strict=True):
        # Processors round in different orders.
        assert numbers == pytest.approx(expected, rel=1e-6, abs=1e-12)
