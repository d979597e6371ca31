"""What stays outside of the graphs that ``torch.compile`` makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def outside_of_graphs(forward: Callable[P, T]) -> Callable[P, T]:
    """Keeps a forward out of compiled graphs: state, draws and sums over processes are not for them."""

    @wraps(forward)
    def outside(*args: P.args, **kwargs: P.kwargs) -> T:
        # Else there is no need for the compiler, which takes seconds to import.
        if torch.compiler.is_compiling():
            return torch.compiler.disable(forward)(*args, **kwargs)
        return forward(*args, **kwargs)

    return outside
