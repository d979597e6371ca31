"""A short run of the fuzzers; ``python -m tests.fuzz.images_and_declarations`` is the long one."""

from collections import Counter

import pytest

from tests.fuzz.images_and_declarations import fuzzers


@pytest.mark.parametrize("name", ["labels", "declarations"])
def test_only_our_errors_come_out(tmp_path, name):
    outcomes = Counter()
    # The same examples every time: a new finding must not stop somebody else's work.
    fuzzers(tmp_path, outcomes, max_examples=100, derandomize=True)[name]()
    assert outcomes[name, "accepted"] >= 5
    assert outcomes[name, "refused"] >= 20
