"""The content of files against types, by pydantic: errors name file, key, value and what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from regseg_d2.common.errors import ConfigError, UserError, printable
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.common.yaml_files import shown


def _as_whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, Field(strict=True, ge=0), BeforeValidator(_as_whole)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
#: In a mapping whose value may be left out: ``key:`` without one is an empty mapping.
OrEmpty = BeforeValidator(lambda value: {} if value is None else value)

# What pydantic calls a mistake -> what was expected, in this package's words.
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "list_type": "a list",
    "tuple_type": "a list",
    "path_type": "a path",
    "too_short": "at least one entry",
    "greater_than_equal": "a number from {ge} on",
}


class Part(BaseModel):
    """A mapping of a file with the keys that are read; others may be there."""

    model_config = ConfigDict(frozen=True)


class Section(Part):
    """A mapping that a user writes: no keys but these. ``key:`` without a value has the defaults."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        value = {} if value is None else value
        known = sorted(cls.model_fields)
        for key in value if isinstance(value, dict) else ():
            if key not in known:
                hint = did_you_mean(str(key), known)
                raise PydanticCustomError(
                    "unknown_key",
                    "{text}",
                    {"text": f"has an unknown key {shown(key)}{hint}; known are {known}"},
                )
        return value


def checked(
    kind: Any, data: Any, file: Path, *, error: type[UserError] = ConfigError, advice: str = ""
) -> Any:
    """Returns the content of a file as a type of its own.

    Args:
        kind: a :class:`Part`, or another type that pydantic knows. Where a validator of it raises ValueError,
            the text says what was expected.
        data: what was read.
        file: where from.
        error: what is raised.
        advice: a sentence more for the error.

    Raises:
        UserError: of the given kind; the data are not of the type.
    """
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as problem:
        mistakes = problem.errors(include_url=False)
    missing = [_key(mistake) for mistake in mistakes if mistake["type"] == "missing"]
    if len(missing) == len(mistakes):
        sentence = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    else:
        sentence = _sentence(next(mistake for mistake in mistakes if mistake["type"] != "missing"))
    raise error(f"{printable(str(file), 500)}: {sentence}" + (advice and f". {advice}"))


def require_known(file: Path, key: str, value: str, known: Iterable[str]) -> None:
    """Refuses a name that nothing in the file has.

    Raises:
        ConfigError: it is not among the known ones.
    """
    known = sorted(known)
    if value not in known:
        raise ConfigError(f"{file}: {key} is {value!r}{did_you_mean(value, known)}; expected one of {known}")


def _sentence(mistake: ErrorDetails) -> str:
    kind, context = mistake["type"], mistake.get("ctx", {})
    if kind == "unknown_key":
        return f"{_key(mistake)} {mistake['msg']}"
    if kind == "unexpected_keyword_argument":
        return f"{_key(mistake)} is an unknown key"
    expected = _EXPECTED.get(kind, mistake["msg"].removeprefix("Input should be ")).format(**context)
    if kind == "value_error":
        expected = str(context["error"])
    return f"{_key(mistake)} is {shown(mistake['input'])}; expected {expected}"


def _key(mistake: ErrorDetails) -> str:
    """``arms.car.seeds[0]``."""
    # pydantic marks an error in a key itself.
    place = [
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"] if part != "[key]"
    ]
    return "".join(place).removeprefix(".") or "the content"
