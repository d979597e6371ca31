"""Counts of multiply-adds: of an inference from its trace, of a training step while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from detectron2.export import TracingAdapter
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of one inference.

    Attributes:
        by_operation: multiply-adds of each kind of operation, by torch's name of it.
        uncounted: how often operations occur that have no formula and are not in the sum.
    """

    by_operation: dict[str, int]
    uncounted: dict[str, int]

    @property
    def total(self) -> int:
        """The sum over all operations that have a formula."""
        return sum(self.by_operation.values())


def count_inference_flops(model: nn.Module, inputs: Any) -> FlopCount:
    """Counts the multiply-adds of an inference, with fvcore's formulas and the ones below.

    One multiplication with one addition counts as one. fvcore's formulas give norms, upsampling and
    adaptive pooling a few for each value. Operations without a formula, elementwise ones for the most part,
    are named in the result (arithmetic on sizes is among them, as a trace has it); copies, comparisons, ReLU
    and clamping count as nothing.
    """
    adapter = TracingAdapter(model, inputs, allow_non_tensor=True)
    analysis = FlopCountAnalysis(adapter, adapter.flattened_inputs)
    analysis.set_op_handle(**_FORMULAS, **dict.fromkeys(_FREE))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        by_operation = analysis.by_operator()
    uncounted = analysis.unsupported_ops()
    return FlopCount(
        {name: int(count) for name, count in sorted(by_operation.items())},
        {name.removeprefix("aten::"): count for name, count in sorted(uncounted.items())},
    )


def count_training_flops(step: Callable[[], None]) -> int:
    """Counts the multiply-adds of convolutions, matrix products and attention, forward and backward.

    All else is left out.
    """
    aten = torch.ops.aten
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            aten.convolution_backward: _convolution_backward,
            aten.mv: lambda matrix, vector, out_shape=None: 2 * prod(matrix),
            aten.dot: lambda first, second, out_shape=None: 2 * prod(first),
        },
    )
    with counter:
        step()
    # torch counts a multiplication and an addition as two.
    return counter.get_total_flops() // 2


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _convolution_backward(gradient: Any, x: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    # torch's own formula takes a convolution in groups for one without.
    _, _, _, _, transposed, _, _, (for_input, for_weight, _) = rest
    forward = 2 * x[0] * prod(weight) * prod((x if transposed else gradient)[2:])
    return forward * (for_input + for_weight)


def _product(position: int = 0) -> Callable[[list[Any], list[Any]], int]:
    """Formula of a matrix product whose first factor is the input at a position.

    fvcore's own takes the first factor's shape alone, and so misses what broadcasting adds.
    """

    def formula(inputs: list[Any], outputs: list[Any]) -> int:
        return prod(get_shape(outputs[0])) * get_shape(inputs[position])[-1]

    return formula


def _traced_attention(inputs: list[Any], outputs: list[Any]) -> int:
    # Queries (..., L, E), keys (..., S, E), values (..., S, V), output (..., L, V): two products.
    query, key, output = get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0])
    return prod(output[:-1]) * key[-2] * (query[-1] + output[-1])


# Nothing happens in evaluation mode, or values are only moved.
_FREE = tuple(
    f"aten::{name}"
    for name in ("alpha_dropout", "clone", "eye", "feature_dropout", "fill_", "pad", "unflatten", "view_as")
)
_FORMULAS = {
    **{f"aten::{name}": _product() for name in ("matmul", "bmm", "mm", "mv", "dot")},
    "aten::baddbmm": _product(1),
    "aten::scaled_dot_product_attention": _traced_attention,
}
