"""Rules: what matches, in which order, and where two tensors want one place."""

import pytest
import torch

from regseg_d2.weights.renaming import prefixed, rename, rename_all

RULES = [(r"a\.(\d)", r"x.\1"), (r"a\..+", "last"), (r"t", "turned", torch.t)]


def shapes(**sizes):
    return {name.replace("_", "."): torch.Size(size) for name, size in sizes.items()}


def test_the_first_rule_that_matches_a_whole_name_counts():
    assert rename("a.1", RULES) == "x.1"
    assert rename("a.12", RULES) == "last"
    assert rename("ba.1", RULES) is None
    renamed, unknown = rename_all({"a.1": torch.ones(1), "b": torch.ones(2)}, RULES)
    assert list(renamed) == ["x.1"]
    assert unknown == ["b"]


def test_a_rule_may_lay_the_tensor_out_anew():
    value = torch.arange(6.0).view(2, 3)
    renamed, _ = rename_all({"t": value}, RULES)
    assert torch.equal(renamed["turned"], value.t())
    # Its new shape is the one that is compared with the one wanted.
    rules = [(r"t", "plain"), (r"t", "turned", torch.t)]
    wanted = shapes(plain=[3, 2], turned=[3, 2])
    assert list(rename_all({"t": value}, rules, wanted)[0]) == ["turned"]


def test_what_is_wanted_goes_first_by_shape_and_then_by_name():
    state = {"a.1": torch.ones(3)}
    assert list(rename_all(state, RULES, shapes(last=[3]))[0]) == ["last"]
    assert list(rename_all(state, RULES, shapes(x_1=[4], last=[3]))[0]) == ["last"]
    assert list(rename_all(state, RULES, shapes(x_1=[4], last=[4]))[0]) == ["x.1"]
    assert rename_all(state, RULES, shapes(other=[3])) == ({}, ["a.1"])


def test_two_tensors_for_one_place():
    state = {"a.12": torch.ones(1), "a.13": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"'a.13' becomes 'last'"):
        rename_all(state, RULES)
    renamed, unknown = rename_all(state, RULES, shapes(last=[1]))
    assert torch.equal(renamed["last"], torch.ones(1))
    assert unknown == ["a.13"]


def test_prefixes():
    renamed, unknown = rename_all(
        {"p.a.1": torch.ones(1), "a.1": torch.ones(1)}, prefixed(RULES, r"p\.", "ours.")
    )
    assert list(renamed) == ["ours.x.1"]
    assert unknown == ["a.1"]
