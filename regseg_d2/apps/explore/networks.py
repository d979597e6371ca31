"""Views of networks that any program has built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regseg_d2.apps.explore.sources import with_void
from regseg_d2.common.errors import ConfigError
from regseg_d2.drawing.pictures import class_colors
from regseg_d2.evaluation.looking.views import View
from regseg_d2.regularizers.recorder import TapRecorder

Look = Callable[[np.ndarray], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LabelledPicture:
    """An image and its label, as a program of one's own reads them.

    Attributes:
        name: tells it from all others, such as its path in the data set.
        pixels: ``(H, W, 3)`` uint8, RGB.
        label: ``(H, W)`` class ids; what is no class is void.
    """

    name: str
    pixels: np.ndarray
    label: np.ndarray


@dataclass
class NetworkSource:
    """Views of a network that any program has built.

    Args:
        name: what figures call it.
        classes: K names.
        pictures: the data set. It is gone through more than once, so it is no generator.
        look: takes ``(H, W, 3)`` uint8 RGB; returns a feature ``(C, h, w)`` of it and logits ``(K, h', w')``
            of any size, both of the whole image without padding.
        colors: ``(K, 3)`` uint8, RGB; ``()`` takes the palette of PASCAL VOC.
        settings: of its training, by key, which the page compares.
        log: rows with "iteration", and losses by name.

    Raises:
        ConfigError: pictures can be gone through once only.
    """

    name: str
    classes: Sequence[str]
    pictures: Iterable[LabelledPicture]
    look: Callable[[np.ndarray], tuple[Tensor, Tensor]]
    colors: np.ndarray | tuple[()] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: Sequence[dict[str, Any]] = ()

    def __post_init__(self) -> None:
        if iter(self.pictures) is self.pictures:
            raise ConfigError(
                f"{self.name}: pictures is an iterator, which can be gone through once only; expected a list "
                "or another iterable that starts afresh."
            )
        colors = {"stuff_colors": self.colors} if len(self.colors) else {}
        self.colors = class_colors(colors, len(self.classes))

    def __iter__(self) -> Iterator[View]:
        return map(self._view, self.pictures)

    def subset(self, names: Iterable[str]) -> Iterator[View]:
        """Yields the views of some images, in this order."""
        wanted = list(names)
        kept = {picture.name: picture for picture in self.pictures if picture.name in set(wanted)}
        return (self._view(kept[name]) for name in wanted)

    def __len__(self) -> int:
        return len(self.pictures) if isinstance(self.pictures, Sized) else sum(1 for _ in self.pictures)

    def training_log(self) -> list[dict[str, Any]]:
        """Returns ``log``."""
        return list(self.log)

    @torch.no_grad()
    def _view(self, picture: LabelledPicture) -> View:
        feature, logits = self.look(picture.pixels)
        height, width = picture.label.shape
        for what, found, channels in (("feature", feature, None), ("logits", logits, len(self.classes))):
            if found.ndim != 3 or channels not in (None, len(found)):
                raise ConfigError(
                    f"{self.name}: look(pixels) returned {what} of the shape {tuple(found.shape)}; expected "
                    f"({channels or 'C'}, h, w) of one image."
                )
        scores = nn.functional.interpolate(
            logits[None].float(), (height, width), mode="bilinear", align_corners=False
        )[0]
        cell = (height / feature.shape[-2], width / feature.shape[-1])
        label = with_void(picture.label, len(self.classes))
        return View(picture.name, picture.pixels, label, scores.cpu(), feature.float().cpu(), cell)


def look_through(
    model: nn.Module,
    tap: str,
    to_input: Callable[[np.ndarray], Tensor],
    to_logits: Callable[[Any], Tensor] = lambda output: output,
) -> Look:
    """Makes the ``look`` of a :class:`NetworkSource` from a module.

    Args:
        model: the network; it is left in evaluation mode.
        tap: of the feature, as in :func:`regseg_d2.regularizers.attach`: ``"segmentation_head.0:in"``.
        to_input: makes the network's input, a batch of one, of ``(H, W, 3)`` uint8 RGB. It may resize, but
            not pad.
        to_logits: takes ``(1, K, h, w)`` out of the network's output.

    Raises:
        ConfigError: there is no such tap.
    """
    model.eval()
    recorder = TapRecorder(model, [tap])

    @torch.no_grad()
    def look(pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        with recorder.record(model) as taps:
            output = model(to_input(pixels))
        return taps[tap][0], to_logits(output)[0]

    return look
