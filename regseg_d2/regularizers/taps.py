"""Taps: named points of a network whose tensors can be read during a training forward.

A tap is written ``"<module path>:<in|out>"``, for example ``"sem_seg_head.predictor:in"``: the first
argument, or the result, of the module at that path. Where the result is a dict, as a backbone's is,
``"backbone:out[res5]"`` is one entry of it. Every semantic segmentation head of Detectron2 and of this
package calls its classifier ``predictor``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.common.suggestions import did_you_mean, nearest_names


class TapError(UserError, RuntimeError):
    """What was found at a tap is nothing that a loss on features could use."""


_SIDE = re.compile(r"(in|out)(?:\[(.+)\])?")


def split_tap(network: nn.Module, tap: str, key: str) -> tuple[nn.Module, str, str]:
    """Finds the module of a tap.

    Args:
        network: the module that the path starts from.
        tap: ``"<module path>:<in|out>"``.
        key: config key that the tap comes from, for the error.

    Returns:
        The module, the side (``"in"`` or ``"out"``), and the entry of its dict, if any, or ``""``.

    Raises:
        ConfigError: if the tap is malformed or there is no such module; lists the near names.
    """
    path, _, side = tap.partition(":")
    match = _SIDE.fullmatch(side)
    if match is None or (match[1] == "in" and match[2]):
        raise ConfigError(
            f"{key}: tap {tap!r} has no side; expected '<module path>:in', '<module path>:out', or "
            "'<module path>:out[<name>]' for one entry of a dict"
        )
    modules = dict(network.named_modules())
    if not path or path not in modules:
        near = nearest_names(path, filter(None, modules), count=5)
        last = path.rpartition(".")[2]
        near += [name for name in modules if name.rpartition(".")[2] == last and name not in near][:5]
        hint = (
            f"near names are {near}" if near else f"its parts are {[n for n, _ in network.named_children()]}"
        )
        raise ConfigError(f"{key}: tap {tap!r}: the network has no module {path!r}; {hint}")
    return modules[path], match[1], match[2] or ""


def has_module(network: nn.Module, path: str) -> bool:
    """Says whether there is a module at ``path``."""
    return any(name == path for name, _ in network.named_modules())


def tap_channels(network: nn.Module, tap: str, key: str) -> int:
    """Number of channels of a tap, read off its convolution.

    Raises:
        ConfigError: if the tap is wrong, or its module does not say how many channels it has.
    """
    module, side, entry = split_tap(network, tap, key)
    if entry:
        return _entry_channels(module, entry, tap, key)
    names = ("in_channels", "in_features") if side == "in" else ("out_channels", "out_features")
    for name in names:
        channels = getattr(module, name, None)
        if isinstance(channels, int):
            return channels
    raise ConfigError(
        f"{key}: tap {tap!r} is a {type(module).__name__}, which does not tell its number of channels; "
        f"expected a module with {' or '.join(names)}, such as a convolution"
    )


def _entry_channels(module: nn.Module, entry: str, tap: str, key: str) -> int:
    shapes = module.output_shape() if hasattr(module, "output_shape") else {}
    if entry not in shapes:
        raise ConfigError(
            f"{key}: tap {tap!r}: the {type(module).__name__} says of no output {entry!r} how many channels "
            f"it has{did_you_mean(entry, shapes)}; it has {sorted(shapes)}"
        )
    return shapes[entry].channels


class TapRecorder:
    """Records tensors at taps during a forward, and leaves nothing behind.

    Args:
        network: the module that tap paths start from.
        taps: names of the taps to record.

    Raises:
        ConfigError: if a tap is wrong.
    """

    def __init__(self, network: nn.Module, taps: Iterable[str]) -> None:
        self.taps = tuple(dict.fromkeys(taps))
        for tap in self.taps:
            split_tap(network, tap, "tap")
        self._channels = {tap: _known_channels(network, tap) for tap in self.taps}

    @contextmanager
    def record(self, network: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Hooks the modules inside the ``with`` block.

        Args:
            network: the network given at construction, or a copy of it.

        Yields:
            A dict that fills with ``{tap name: tensor}`` while the network runs.

        Raises:
            TapError: if a tapped module ran twice or not at all, handled no tensor ``(N, C, h, w)`` with the
            channels that it declares, or ran where gradients are off though the forward has them on.
        """
        recorded: dict[str, Tensor] = {}
        handles = [self._hook(network, tap, recorded) for tap in self.taps]
        try:
            yield recorded
        finally:
            for handle in handles:
                handle.remove()
        missing = [tap for tap in self.taps if tap not in recorded]
        if missing:
            raise TapError(f"taps {missing} were not reached by the forward pass")

    def _hook(self, network: nn.Module, tap: str, recorded: dict[str, Tensor]) -> Any:
        module, side, entry = split_tap(network, tap, "tap")
        with_gradient = torch.is_grad_enabled()

        def keep(value: Any) -> None:
            if entry:
                value = _entry_of(value, entry, tap)
            if tap in recorded:
                raise TapError(f"tap {tap!r}: its module ran twice in one forward pass")
            if not isinstance(value, Tensor):
                raise TapError(f"tap {tap!r} handles a {type(value).__name__}; expected a tensor")
            _check_shape(value, tap, module, self._channels[tap])
            if with_gradient and not torch.is_grad_enabled():
                raise TapError(
                    f"tap {tap!r} is reached where gradients are off: its losses would train nothing. Under "
                    "activation checkpointing, use_reentrant=False keeps them on; a torch.no_grad() around a "
                    "part of the network has to end before the tap."
                )
            recorded[tap] = value

        if side == "in":
            return module.register_forward_pre_hook(lambda _, args: keep(args[0] if args else None))
        return module.register_forward_hook(lambda _, args, result: keep(result))


def _entry_of(value: Any, entry: str, tap: str) -> Any:
    if not isinstance(value, Mapping):
        raise TapError(f"tap {tap!r}: the result is a {type(value).__name__}; expected a dict with {entry!r}")
    if entry not in value:
        raise TapError(f"tap {tap!r}: the result has no {entry!r}; it has {sorted(value)}")
    return value[entry]


def _known_channels(network: nn.Module, tap: str) -> int | None:
    try:
        return tap_channels(network, tap, "tap")
    except ConfigError:
        return None  # a dropout, for example, takes any number


def _check_shape(value: Tensor, tap: str, module: nn.Module, channels: int | None) -> None:
    shape = tuple(value.shape)
    if value.ndim == 4 and isinstance(module, nn.Linear):
        raise TapError(
            f"tap {tap!r} is at a linear layer, whose tensor {shape} has its channels last; expected "
            "(N, C, h, w). Take a tap before the network brings them to the end, or a 1x1 convolution."
        )
    if value.ndim != 4 or channels not in (None, shape[1]):
        raise TapError(
            f"tap {tap!r} has a tensor of the shape {shape}; expected (N, C, h, w)"
            + (f" with C = {channels}, as its module declares." if channels else ".")
        )
