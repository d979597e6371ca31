"""What modules handle at taps in a forward: recorded, checked, and counted in channels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regseg_d2.common.dry_run import NetworkOnMeta
from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.common.suggestions import did_you_mean
from regseg_d2.ops.mask_classification import dense_logits
from regseg_d2.regularizers.taps import Tap, declared_channels, module_of, output_shapes, parse_tap

#: How results call the logits of the queries' classes and of their masks: Detectron2's projects, and
#: transformers; and the results of earlier layers.
CLASSIFIED_MASKS = (("pred_logits", "pred_masks"), ("class_queries_logits", "masks_queries_logits"))
AUXILIARY_MASKS = ("aux_outputs", "auxiliary_logits", "auxiliary_predictions")


class TapError(UserError, RuntimeError):
    """What was found at a tap is nothing that a loss on features could use."""


class TapRecorder:
    """Records tensors at taps during a forward.

    Args:
        network: the module that tap paths start from.
        taps: names of the taps to record.

    Raises:
        ConfigError: if a tap is wrong.
    """

    def __init__(self, network: nn.Module, taps: Iterable[str]) -> None:
        parsed = [parse_tap(tap, "tap") for tap in dict.fromkeys(taps)]
        self._probes = [_Probe(tap, module_of(network, tap, "tap")) for tap in parsed]

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps."""
        return tuple(probe.tap.name for probe in self._probes)

    @contextmanager
    def record(self, network: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Hooks the modules inside the ``with`` block, and leaves nothing behind.

        Args:
            network: the network given at construction, or a copy of it.

        Yields:
            A dict that holds ``{tap name: tensor}`` when the block has ended.

        Raises:
            TapError: if a tapped module ran another number of times, handled no tensor ``(N, C, h, w)`` with
                the channels that it declares, or ran where gradients are off though the forward has them on.
        """
        handles = self.hook(network)
        try:
            with self.listen() as recorded:
                yield recorded
        finally:
            for handle in handles:
                handle.remove()

    def hook(self, network: nn.Module) -> list[Any]:
        """Hooks the modules for good; what they handle is taken inside of :meth:`listen` only.

        Returns:
            Handles that remove the hooks.
        """
        return [probe.hook(module_of(network, probe.tap, "tap")) for probe in self._probes]

    @contextmanager
    def listen(self) -> Iterator[dict[str, Tensor]]:
        """Takes what hooked modules handle inside the ``with`` block; see :meth:`record`."""
        recorded: dict[str, Tensor] = {}
        try:
            for probe in self._probes:
                probe.start()
            yield recorded
            for probe in self._probes:
                recorded[probe.tap.name] = probe.tensor()
        finally:
            for probe in self._probes:
                probe.stop()


class _Probe:
    """The hook of one tap.

    Args:
        tap: the tap.
        module: its module, which says what is expected there.
    """

    def __init__(self, tap: Tap, module: nn.Module) -> None:
        self.tap = tap
        self.channels = declared_channels(module, tap)
        self.is_linear = isinstance(module, nn.Linear)
        self.is_on = False
        self.has_gradient = False
        # What the module handled at each call, and whether gradients were on.
        self.calls: list[tuple[Any, bool]] = []

    def hook(self, module: nn.Module) -> Any:
        if self.tap.side == "in":
            return module.register_forward_pre_hook(self.before, with_kwargs=True)
        return module.register_forward_hook(self.after)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_on:
            self.calls.append(((args, kwargs), torch.is_grad_enabled()))

    def after(self, module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        if self.is_on:
            self.calls.append((result, torch.is_grad_enabled()))

    def start(self) -> None:
        self.is_on, self.has_gradient = True, torch.is_grad_enabled()

    def stop(self) -> None:
        self.is_on, self.calls = False, []

    def tensor(self) -> Tensor:
        name, call = self.tap.name, self.tap.call
        if not self.calls:
            raise TapError(f"taps {[name]} were not reached by the forward pass")
        if call is None and len(self.calls) > 1:
            raise TapError(
                f"tap {name!r}: its module ran twice or more in one forward pass; '{name}#-1' is the last run"
            )
        if call is not None and not -len(self.calls) <= call < len(self.calls):
            raise TapError(f"tap {name!r}: its module ran {len(self.calls)} times in one forward pass")
        value, had_gradient = self.calls[call or 0]
        if self.tap.side == "masks":
            return self._dense_logits(value)
        value = self._argument(*value) if self.tap.side == "in" else self._entry(value, "result")
        if not isinstance(value, Tensor):
            raise TapError(f"tap {name!r} handles a {type(value).__name__}; expected a tensor")
        self._check_shape(tuple(value.shape))
        if self.has_gradient and not had_gradient:
            raise TapError(
                f"tap {name!r} is reached where gradients are off: its losses would train nothing. Under "
                "activation checkpointing, use_reentrant=False keeps them on; a torch.no_grad() around a "
                "part of the network has to end before the tap."
            )
        return value.movedim(-1, 1) if self.tap.channels_last else value

    def _dense_logits(self, value: Any) -> Tensor:
        name, entry = self.tap.name, self.tap.entry
        if entry:
            kept = [key for key in AUXILIARY_MASKS if isinstance(value, Mapping) and value.get(key)]
            value = self._entry(value[kept[0]], "list of auxiliary results") if kept else {}
        found = value if isinstance(value, Mapping) else {}
        for classes, masks in CLASSIFIED_MASKS:
            if found.get(classes) is not None and found.get(masks) is not None:
                return dense_logits(found[classes], found[masks])
        raise TapError(
            f"tap {name!r}: the result is a {type(value).__name__} with {sorted(map(str, found))}; expected "
            f"classified masks{f' among its {AUXILIARY_MASKS}' if entry else ''}: {CLASSIFIED_MASKS}"
        )

    def _argument(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if self.tap.entry in kwargs:
            return kwargs[self.tap.entry]
        return self._entry(next(iter((*args, *kwargs.values())), None), "first argument")

    def _entry(self, value: Any, what: str) -> Any:
        entry, name = self.tap.entry, self.tap.name
        if not entry:
            return value
        if isinstance(value, Mapping):
            if entry not in value:
                raise TapError(f"tap {name!r}: the {what} has no {entry!r}; it has {sorted(value)}")
            return value[entry]
        if isinstance(value, Sequence) and re.fullmatch(r"-?\d+", entry):
            if not -len(value) <= int(entry) < len(value):
                raise TapError(f"tap {name!r}: the {what} has {len(value)} entries")
            return value[int(entry)]
        raise TapError(
            f"tap {name!r}: the {what} is a {type(value).__name__}; expected a dict with {entry!r}"
        )

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        name, is_last = self.tap.name, self.tap.channels_last
        if len(shape) == 4 and self.is_linear and not is_last:
            raise TapError(
                f"tap {name!r} is at a linear layer, whose tensor {shape} has its channels last; expected "
                f"(N, C, h, w). Write '{name}[nhwc]', or take a tap at a 1x1 convolution."
            )
        if len(shape) != 4 or self.channels not in (None, shape[-1 if is_last else 1]):
            raise TapError(
                f"tap {name!r} has a tensor of the shape {shape}; expected "
                + ("(N, h, w, C)" if is_last else "(N, C, h, w)")
                + (f" with C = {self.channels}, as its module declares." if self.channels else ".")
            )


def tap_channels(network: nn.Module, tap: str, key: str, example: Any = None) -> int:
    """Number of channels of a tap: what its module says, or what a forward on ``meta`` shows.

    Args:
        network: the module that the path starts from.
        tap: the tap.
        key: what the tap comes from, for the error.
        example: an argument of the network, or a tuple of all; by default two images of 64 x 64. Nothing is
            computed on it.

    Raises:
        ConfigError: if the tap is wrong, or neither its module nor a forward tells the channels.
    """
    parsed = parse_tap(tap, key)
    module = module_of(network, parsed, key)
    channels = declared_channels(module, parsed)
    if channels is not None:
        return channels
    try:
        return _channels_in_forward(network, tap, example)
    except Exception as error:  # whatever a network does with images that it was not made for
        raise ConfigError(
            f"{key}: tap {tap!r} {_silence(module, parsed)}; and a forward failed: {error}"
        ) from error


def _silence(module: nn.Module, tap: Tap) -> str:
    said = f"is at a {type(module).__name__}, which"
    shapes = output_shapes(module)
    if tap.side == "in" or not tap.entry or not shapes:
        return f"{said} does not tell its number of channels"
    hint = f"{did_you_mean(tap.entry, shapes)}; it has {sorted(shapes)}"
    return f"{said} says of no output {tap.entry!r} how many channels it has{hint}"


@torch.no_grad()
def _channels_in_forward(network: nn.Module, tap: str, example: Any) -> int:
    if example is None:
        example = torch.zeros(2, 3, 64, 64)
    on_meta = NetworkOnMeta(network)
    with TapRecorder(on_meta.network, [tap]).record(on_meta.network) as taps:
        on_meta.run(*(example if isinstance(example, tuple) else (example,)))
    return taps[tap].shape[1]
