"""Taps: named points of a network whose tensors can be read during a training forward.

A tap is written ``"<module path>:<in|out|masks>"``, for example ``"sem_seg_head.predictor:in"``: the first
argument, or the result, of the module at that path; no path is the network itself. ``masks`` is for a result
that is classified masks, as of MaskFormer's kind: it is read as logits of pixels, without gradient
(``ops/mask_classification.py``). What may follow, in this order:

- ``[res5]``: one entry of a dict, or of a list or tuple by its number; of ``in``, the keyword argument of
  that name; of ``masks``, an auxiliary result by its number. A backbone's feature is
  ``"backbone:out[res5]"``.
- ``[nhwc]``: the tensor is ``(N, h, w, C)``, as linear layers have it; it is read as ``(N, C, h, w)``.
- ``#-1``: the last call of a module that runs several times in a forward; ``#0`` is the first.

Every semantic segmentation head of Detectron2 and of this package calls its classifier ``predictor``.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torch import nn

from regseg_d2.common.errors import ConfigError
from regseg_d2.common.suggestions import nearest_names

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

_SIDE = re.compile(
    r"(?P<side>in|out|masks)(?:\[(?!nhwc\])(?P<entry>[^\[\]]+)\])?(?P<last>\[nhwc\])?(?:#(?P<call>-?\d+))?"
)


class Tap(NamedTuple):
    """A tap, taken apart.

    Attributes:
        name: as it is written.
        path: path of the module.
        side: ``"in"``, ``"out"`` or ``"masks"``.
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
            f"{key}: tap {tap!r} has no side; expected '<module path>:in', '<module path>:out', "
            "'<module path>:out[<name>]' for one entry of a dict, or '<module path>:masks'"
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
        return network.get_submodule(path)
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


def declared_channels(module: nn.Module, tap: Tap) -> int | None:
    """Number of channels that a module says its argument or result has; None if it does not."""
    if tap.side == "masks":
        return None
    if tap.entry and tap.side == "out":
        shapes = output_shapes(module)
        return shapes[tap.entry].channels if tap.entry in shapes else None
    if tap.entry:
        return None
    side = ("in_channels", "in_features") if tap.side == "in" else ("out_channels", "out_features")
    for name in (*side, "num_features", "num_channels"):
        channels = getattr(module, name, None)
        if isinstance(channels, int):
            return channels
    # A layer norm of one dimension, that of the channels, wherever they are.
    shape: tuple[int, ...] = getattr(module, "normalized_shape", ())
    return shape[0] if len(shape) == 1 else None


def output_shapes(module: nn.Module) -> dict[str, Any]:
    """What Detectron2's backbones say of their outputs."""
    output_shape: Any = getattr(module, "output_shape", dict)
    return output_shape()
