"""Content of files against types: what is taken, and what an error says."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AfterValidator

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.common.schema import Number, Part, Section, Whole, checked


def even(value):
    if value % 2:
        raise ValueError("an even number")
    return value


class Inner(Section):
    count: Whole = 3
    share: Number | None = None


class Outer(Part):
    name: str
    inner: Inner = Inner()
    many: dict[str, Inner] = {}
    pairs: tuple[Annotated[Whole, AfterValidator(even)], ...] = ()


def test_values_and_defaults():
    read = checked(Outer, {"name": "x", "inner": None, "pairs": [2, 4], "other": 1}, Path("f.json"))
    assert read.inner == Inner() and read.pairs == (2, 4)
    assert checked(Outer, {"name": "x", "inner": {"count": 4.0}}, Path("f")).inner.count == 4
    assert checked(Outer, {"name": "x", "inner": {"share": 1}}, Path("f")).inner.share == 1.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "f.yaml: name is missing. Ask."),
        ([], "f.yaml: the content is []; expected a mapping of keys to values. Ask."),
        ({"name": 1}, "f.yaml: name is 1; expected a text. Ask."),
        ({"name": "x", "inner": {"count": True}}, "inner.count is True; expected a whole number"),
        ({"name": "x", "inner": {"count": "3"}}, "inner.count is '3'; expected a whole number"),
        ({"name": "x", "inner": {"count": 1.5}}, "inner.count is 1.5; expected a whole number"),
        ({"name": "x", "inner": {"count": -1}}, "inner.count is -1; expected a number from 0 on"),
        ({"name": "x", "inner": {"share": float("nan")}}, "inner.share is nan; expected a finite number"),
        ({"name": "x", "inner": {"share": True}}, "inner.share is True; expected a finite number"),
        ({"name": "x", "pairs": [2, 3]}, "pairs[1] is 3; expected an even number"),
        ({"name": "x", "pairs": 2}, "pairs is 2; expected a list"),
        (
            {"name": "x", "many": {"a": {"cuont": 1}}},
            "many.a has an unknown key 'cuont' (did you mean 'count'?); known are ['count', 'share']",
        ),
    ],
)
def test_errors_name_the_place(data, message):
    class OwnError(UserError):
        pass

    with pytest.raises(OwnError) as info:
        checked(Outer, data, Path("f.yaml"), error=OwnError, advice="Ask.")
    assert message in str(info.value)
    with pytest.raises(ConfigError):
        checked(Outer, data, Path("f.yaml"))
