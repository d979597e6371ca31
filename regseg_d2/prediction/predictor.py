"""A trained model that is called with images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from regseg_d2.common.errors import ConfigError, DatasetError
from regseg_d2.config.files import load_config
from regseg_d2.data.mapper import TestMapper
from regseg_d2.engine.devices import with_available_device, with_device
from regseg_d2.engine.trained_model import config_of_run, load_trained_model
from regseg_d2.evaluation.inference import InferenceProtocol, build_predictor
from regseg_d2.prediction.bundle import BUNDLE_FILE, CONFIG_FILE, open_bundle
from regseg_d2.prediction.classes import ClassList
from regseg_d2.prediction.hub import download_bundle
from regseg_d2.prediction.pixels import ImageSource, file_of, is_batch, rgb_pixels
from regseg_d2.prediction.result import Prediction
from regseg_d2.segmentor.meta_architecture import RegularizationMixin

Device = str | torch.device | None


class Predictor:
    """Predicts the classes of images, as ``train_net.py --eval-only`` does it, to the bit.

    Images are predicted one by one, each at its own size: what stands beside one in a list does not change
    its prediction.

    Args:
        cfg: the config; its ``TEST`` and ``INPUT`` say what is done with an image.
        model: its network with the trained weights.
        classes: what the labels stand for.

    Attributes:
        cfg: the config.
        model: the network.
        classes: names and colours of the classes.

    Raises:
        ConfigError: the config's protocol cannot be used, or the network cannot follow it.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, classes: ClassList) -> None:
        self.cfg = cfg
        self.model = model
        self.classes = classes
        self._predict = build_predictor(cfg, model)
        self._mapper = TestMapper(cfg)

    # ----------------------------------------------------------------------------------------- sources

    @classmethod
    def from_config(
        cls, cfg: CfgNode, *, device: Device = None, classes: ClassList | None = None
    ) -> Predictor:
        """Loads MODEL.WEIGHTS of a config.

        Args:
            cfg: the config.
            device: such as ``"cpu"`` or ``"cuda:1"``; None is MODEL.DEVICE, or the CPU of a machine without
                a GPU.
            classes: None takes those of the first data set in DATASETS.TEST, else in DATASETS.TRAIN.

        Raises:
            UserError: what the config names cannot be used: the data set, the device, the weights.
        """
        classes = classes or ClassList.of_config(cfg)
        cfg = with_available_device(cfg) if device is None else with_device(cfg, device)
        model = load_trained_model(cfg).model
        if isinstance(model, RegularizationMixin):
            model.add_regularizers({})  # nobody needs them from here on, and memories may be large
        return cls(cfg, model, classes)

    @classmethod
    def from_run(
        cls,
        folder: str | os.PathLike[str],
        *,
        weights: str = "",
        device: Device = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """Loads a run that was trained by this package.

        Args:
            folder: its OUTPUT_DIR.
            weights: name of a checkpoint in it, such as ``"model_best.pth"``; "" is the final one, else the
                last one.
            device: see :meth:`from_config`.
            overrides: keys of the config that shall differ, such as ``{"TEST.MODE": "slide"}``.

        Raises:
            UserError: it is no run, or what it names cannot be used.
        """
        cfg = config_of_run(os.fspath(folder), weights, _pairs(overrides))
        return cls.from_config(cfg, device=device)

    @classmethod
    def from_file(
        cls,
        weights: str | os.PathLike[str],
        config_file: str | os.PathLike[str] = "",
        *,
        device: Device = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """Loads a file of weights.

        Args:
            weights: a file of any kind that MODEL.WEIGHTS takes.
            config_file: its config; "" is the ``config.yaml`` beside it.
            device: see :meth:`from_config`.
            overrides: see :meth:`from_run`.

        Raises:
            UserError: there is no config, or what it names cannot be used.
        """
        weights = Path(weights)
        if not config_file and (weights.parent / BUNDLE_FILE).is_file():
            return cls.from_bundle(weights.parent, weights=weights.name, device=device, overrides=overrides)
        config = Path(config_file) if config_file else weights.parent / CONFIG_FILE
        if not config_file and not config.is_file():
            raise ConfigError(
                f"'{weights}' has no {CONFIG_FILE} beside it: name the config of its network, "
                "config_file=FILE."
            )
        cfg = load_config(str(config), [*_pairs(overrides), "MODEL.WEIGHTS", str(weights)])
        return cls.from_config(cfg, device=device)

    @classmethod
    def from_bundle(
        cls,
        folder: str | os.PathLike[str],
        *,
        weights: str = "",
        device: Device = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """Loads a folder that ``tools/bundle.py`` wrote. It needs nothing else, and runs no code of it.

        Args:
            folder: the folder.
            weights: name of another file of weights in it than the one it was made with.
            device: such as ``"cpu"``; None is the GPU, or the CPU of a machine without one.
            overrides: see :meth:`from_run`.

        Raises:
            UserError: it is no such folder, or damaged.
        """
        bundle = open_bundle(Path(folder), weights, _pairs(overrides))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls.from_config(bundle.cfg, device=device, classes=bundle.classes)

    @classmethod
    def from_hub(
        cls,
        repository: str,
        *,
        token: str | None = None,
        device: Device = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """Loads a bundle from the Hugging Face hub, or from the hub's cache of this machine.

        Args:
            repository: ``"owner/name"``, or ``"owner/name@revision"``.
            token: of a user who may read it; None is the one that ``hf auth login`` keeps.
            device: see :meth:`from_bundle`.
            overrides: see :meth:`from_run`.

        Raises:
            UserError: it cannot be had, or is no bundle.
        """
        return cls.from_bundle(download_bundle(repository, token), device=device, overrides=overrides)

    # ------------------------------------------------------------------------------------------ images

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; the label i is ``class_names[i]``."""
        return self.classes.names

    @property
    def protocol(self) -> InferenceProtocol:
        """What is done with an image."""
        return self._predict.protocol

    @overload
    def __call__(
        self, images: str | os.PathLike[str] | Image.Image, *, scores: bool = ..., confidence: bool = ...
    ) -> Prediction: ...

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        channels: str = ...,
        scores: bool = ...,
        confidence: bool = ...,
    ) -> list[Prediction]: ...

    @overload
    def __call__(
        self, images: np.ndarray | Tensor, *, channels: str = ..., scores: bool = ..., confidence: bool = ...
    ) -> Any: ...

    def __call__(
        self, images: Any, *, channels: str = "RGB", scores: bool = False, confidence: bool = False
    ) -> Any:
        """Predicts an image, or several.

        Args:
            images: a path; a Pillow image; a NumPy array (H, W, 3) or, grey, (H, W); a tensor (3, H, W) or
                (1, H, W); arrays and tensors of uint8. Several are a list or tuple of these, an array
                (N, H, W, 3) or a tensor (N, 3, H, W).
            channels: order of the channels of arrays and tensors; ``"BGR"`` for frames of OpenCV.
            scores: keep the probabilities of all classes, 4 K bytes a pixel.
            confidence: keep the probability of the label, 4 bytes a pixel.

        Returns:
            A :class:`~regseg_d2.prediction.Prediction`; of several a list of them.

        Raises:
            UserError: an image cannot be read, or is none.
        """
        wanted = {"scores": scores, "confidence": confidence}
        if is_batch(images):
            return list(self.stream(images, channels=channels, **wanted))
        return self._one(images, channels, **wanted)

    def frame(self, frame: np.ndarray, *, scores: bool = False, confidence: bool = False) -> Prediction:
        """Predicts a frame of a video as OpenCV gives it.

        Args:
            frame: (H, W, 3) uint8, BGR.
            scores: see :meth:`__call__`.
            confidence: see :meth:`__call__`.

        Raises:
            UserError: it is no such array.
        """
        return self._one(frame, "BGR", scores=scores, confidence=confidence)

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        channels: str = "RGB",
        scores: bool = False,
        confidence: bool = False,
    ) -> Iterator[Prediction]:
        """Predicts images as they come, and keeps none: for more than fit into memory.

        Args:
            images: any number of images, see :meth:`__call__`.
            channels: see :meth:`__call__`.
            scores: see :meth:`__call__`.
            confidence: see :meth:`__call__`.

        Yields:
            A prediction of each, in their order.

        Raises:
            UserError: an image cannot be read, or is none; its number among the images is named.
        """
        for number, image in enumerate(images):
            try:
                yield self._one(image, channels, scores=scores, confidence=confidence)
            except DatasetError as error:
                raise DatasetError(f"images[{number}]: {error}") from error

    def _one(self, image: ImageSource, channels: str, *, scores: bool, confidence: bool) -> Prediction:
        pixels = rgb_pixels(image, channels)
        (result,) = self._predict(
            [self._mapper.of_pixels(pixels)], probabilities=scores, confidence=confidence
        )
        return Prediction(
            labels=result["sem_seg_labels"].cpu().numpy(),
            image=pixels,
            classes=self.classes,
            file=file_of(image),
            _scores=result["probabilities"].cpu().numpy() if scores else None,
            _confidence=result["confidence"].cpu().numpy() if confidence else None,
        )


def _pairs(overrides: Mapping[str, Any] | None) -> Sequence[Any]:
    return list(chain.from_iterable((overrides or {}).items()))
