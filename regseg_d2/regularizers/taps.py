"""Taps: named points of a network whose tensors can be read during a training forward.

A tap is written ``"<module path>:<in|out>"``, for example ``"sem_seg_head.predictor:in"``: the first
argument, or the result, of the module at that path. What may follow, in this order:

- ``[res5]``: one entry of a dict, or of a list or tuple by its number; of ``in``, the keyword argument of
  that name. A backbone's feature is ``"backbone:out[res5]"``.
- ``[nhwc]``: the tensor is ``(N, h, w, C)``, as linear layers have it; it is read as ``(N, C, h, w)``.
- ``#-1``: the last call of a module that runs several times in a forward; ``#0`` is the first.

Every semantic segmentation head of Detectron2 and of this package calls its classifier ``predictor``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from regseg_d2.common.errors import ConfigError, UserError
from regseg_d2.common.suggestions import did_you_mean, nearest_names


class TapError(UserError, RuntimeError):
    """What was found at a tap is nothing that a loss on features could use."""


DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

_SIDE = re.compile(
    r"(?P<side>in|out)(?:\[(?!nhwc\])(?P<entry>[^\[\]]+)\])?(?P<last>\[nhwc\])?(?:#(?P<call>-?\d+))?"
)


class Tap(NamedTuple):
    """A tap, taken apart.

    Attributes:
        name: as it is written.
        path: path of the module.
        side: ``"in"`` or ``"out"``.
        entry: the entry or keyword argument, or ``""``.
        channels_last: whether channels are the last dimension.
        call: number of the call; None where the module has to run once.
    """

    name: str
    path: str
    side: str
    entry: str
    channels_last: bool
    call: int | None


def parse_tap(tap: str, key: str) -> Tap:
    """Takes a tap apart.

    Args:
        tap: as the module's docstring says.
        key: what the tap comes from, for the error.

    Raises:
        ConfigError: the tap is malformed.
    """
    path, _, side = tap.partition(":")
    match = _SIDE.fullmatch(side)
    if match is None:
        raise ConfigError(
            f"{key}: tap {tap!r} has no side; expected '<module path>:in', '<module path>:out', or "
            "'<module path>:out[<name>]' for one entry of a dict"
        )
    call = None if match["call"] is None else int(match["call"])
    return Tap(tap, path, match["side"], match["entry"] or "", bool(match["last"]), call)


def module_of(network: nn.Module, tap: Tap, key: str) -> nn.Module:
    """Finds the module of a tap.

    Raises:
        ConfigError: there is no such module; lists the near names.
    """
    module = _module_at(network, tap.path)
    if module is None:
        modules = dict(network.named_modules())
        near = nearest_names(tap.path, filter(None, modules), count=5)
        last = tap.path.rpartition(".")[2]
        near += [name for name in modules if name.rpartition(".")[2] == last and name not in near][:5]
        hint = (
            f"near names are {near}" if near else f"its parts are {[n for n, _ in network.named_children()]}"
        )
        raise ConfigError(f"{key}: tap {tap.name!r}: the network has no module {tap.path!r}; {hint}")
    return module


def has_module(network: nn.Module, path: str) -> bool:
    """Says whether there is a module at ``path``."""
    return _module_at(network, path) is not None


def _module_at(network: nn.Module, path: str) -> nn.Module | None:
    try:
        return network.get_submodule(path) if path else None
    except AttributeError:
        return None


def tap_before(network: nn.Module, classifier: str) -> str:
    """Tap of the feature that a classifier reads, before the dropout where there is one in between.

    Behind a dropout two views of a pixel differ, and a class center is one of features with missing channels.

    Args:
        network: the module that tap paths start from.
        classifier: module path of the classifier.
    """
    dropout = dropout_before(network, classifier)
    is_on = bool(dropout) and getattr(network.get_submodule(dropout), "p", 0) > 0
    return f"{dropout if is_on else classifier}:in"


def dropout_before(network: nn.Module, classifier: str) -> str:
    """Path of the dropout whose output a classifier reads, or ``""``.

    That is the module before it in an ``nn.Sequential``, or ``dropout`` of a head that says
    ``dropout_feeds_predictor`` of itself.

    Args:
        network: the module that tap paths start from.
        classifier: module path of the classifier.
    """
    path, _, name = classifier.rpartition(".")
    head = network.get_submodule(path)
    candidate = ""
    if isinstance(head, nn.Sequential):
        names = list(head._modules)
        earlier = names[: names.index(name)]
        candidate = next((x for x in reversed(earlier) if not isinstance(head._modules[x], nn.Identity)), "")
    elif getattr(head, "dropout_feeds_predictor", False) and name == "predictor":
        candidate = "dropout"
    if not candidate or not isinstance(head.get_submodule(candidate), DROPOUTS):
        return ""
    return f"{path}.{candidate}" if path else candidate


# ------------------------------------------------------------------------------------------- channels


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
    channels = _declared_channels(module, parsed)
    if channels is not None:
        return channels
    try:
        return _channels_in_forward(network, tap, example)
    except Exception as error:  # whatever a network does with images that it was not made for
        raise ConfigError(
            f"{key}: tap {tap!r} {_silence(module, parsed)}; and a forward failed: {error}"
        ) from error


def _declared_channels(module: nn.Module, tap: Tap) -> int | None:
    if tap.entry and tap.side == "out":
        shapes = _output_shapes(module)
        return shapes[tap.entry].channels if tap.entry in shapes else None
    if tap.entry:
        return None
    side = ("in_channels", "in_features") if tap.side == "in" else ("out_channels", "out_features")
    for name in (*side, "num_features", "num_channels"):
        channels = getattr(module, name, None)
        if isinstance(channels, int):
            return channels
    return None


def _output_shapes(module: nn.Module) -> dict[str, Any]:
    """What Detectron2's backbones say of their outputs."""
    output_shape: Any = getattr(module, "output_shape", dict)
    return output_shape()


def _silence(module: nn.Module, tap: Tap) -> str:
    said = f"is at a {type(module).__name__}, which"
    shapes = _output_shapes(module)
    if tap.side == "in" or not tap.entry or not shapes:
        return f"{said} does not tell its number of channels"
    hint = f"{did_you_mean(tap.entry, shapes)}; it has {sorted(shapes)}"
    return f"{said} says of no output {tap.entry!r} how many channels it has{hint}"


@torch.no_grad()
def _channels_in_forward(network: nn.Module, tap: str, example: Any) -> int:
    """Runs a copy of the network on ``meta``, where nothing is computed and no weight is held."""
    arguments = (
        example
        if isinstance(example, tuple)
        else (torch.zeros(2, 3, 64, 64) if example is None else example,)
    )
    arguments = tuple(x.to("meta") if isinstance(x, Tensor) else x for x in arguments)
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    # The copy takes the tensors for its own: they are not copied.
    copied = copy.deepcopy(network, {id(tensor): tensor for tensor in state.values()}).eval()
    with TapRecorder(copied, [tap]).record(copied) as taps:
        functional_call(copied, {name: tensor.to("meta") for name, tensor in state.items()}, arguments)
    return taps[tap].shape[1]


# ------------------------------------------------------------------------------------------ recording


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
        self.channels = _declared_channels(module, tap)
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
