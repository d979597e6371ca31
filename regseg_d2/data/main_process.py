"""What the main process does for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from detectron2.utils import comm

from regseg_d2.common.errors import UserError

Result = TypeVar("Result")


def from_main_process(function: Callable[[], Result]) -> Result:
    """Calls a function in the main process and gives all processes its result, or its user's error."""
    outcome: Result | UserError | None = None
    if comm.is_main_process():
        try:
            outcome = function()
        except UserError as error:
            outcome = error
    outcome = comm.all_gather(outcome)[0]
    if isinstance(outcome, UserError):
        raise outcome
    return outcome
