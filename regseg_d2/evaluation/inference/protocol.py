"""What is done to an image at test time, as the config says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode, get_cfg

from regseg_d2.common.errors import ConfigError

MODES = ("whole", "slide")
PADDINGS = ("stride", "none")
DEVICES = ("", "cpu", "cuda")


@dataclass(frozen=True)
class InferenceProtocol:
    """How a network is applied to an image; two results can be compared if theirs are equal.

    Attributes:
        mode: "whole", or "slide" for overlapping windows.
        crop_size: height and width of a window; smaller where the image is smaller.
        stride: rows and columns from a window to the next one.
        tile_batch: windows in one forward pass.
        scales: the image is resized by each of them.
        flip: each scale is also run mirrored.
        padding: "stride" pads the network's input to its stride, as in training; "none" does not, and
            stretches the logits over the image, as mmsegmentation does.
        logits_device: where logits become full size and labels: "" is the model's device.
        min_size: shorter side of the image before it is scaled; 0 is its own size.
        max_size: largest longer side, where there is a ``min_size``.

    Raises:
        ConfigError: a value that cannot be used.
    """

    mode: str = "whole"
    crop_size: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    tile_batch: int = 1
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    padding: str = "stride"
    logits_device: str = ""
    min_size: int = 0
    max_size: int = 4096

    def __post_init__(self) -> None:
        """Checks the values, with the names of their keys."""
        _check_choice("TEST.MODE", self.mode, MODES)
        _check_choice("TEST.PADDING", self.padding, PADDINGS)
        _check_choice("TEST.LOGITS_DEVICE", self.logits_device, DEVICES)
        for key, pair in (("CROP_SIZE", self.crop_size), ("STRIDE", self.stride)):
            if len(pair) != 2 or min(pair) < 1:
                raise ConfigError(
                    f"TEST.SLIDE.{key} is {list(pair)}; expected height and width, 1 or more each."
                )
        if any(step > side for step, side in zip(self.stride, self.crop_size, strict=True)):
            raise ConfigError(
                f"TEST.SLIDE.STRIDE is {list(self.stride)} and TEST.SLIDE.CROP_SIZE {list(self.crop_size)}: "
                "pixels between windows would have no prediction. Expected a stride of at most the window."
            )
        if self.tile_batch < 1:
            raise ConfigError(f"TEST.SLIDE.TILE_BATCH is {self.tile_batch}; expected 1 or more.")
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(
                f"TEST.AUG.SCALES is {list(self.scales)}; expected at least one factor above 0, "
                "such as [1.0]."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> InferenceProtocol:
        """Reads ``cfg.TEST`` and the size of the test images in ``cfg.INPUT``.

        Raises:
            ConfigError: a value that cannot be used.
        """
        slide, augmentation = cfg.TEST.SLIDE, cfg.TEST.AUG
        if augmentation.ENABLED and tuple(augmentation.MIN_SIZES) != tuple(get_cfg().TEST.AUG.MIN_SIZES):
            raise ConfigError(
                f"TEST.AUG.MIN_SIZES is {list(augmentation.MIN_SIZES)}, and semantic segmentation scales by "
                "factors: set TEST.AUG.SCALES, and leave TEST.AUG.MIN_SIZES out."
            )
        return cls(
            mode=cfg.TEST.MODE,
            crop_size=tuple(slide.CROP_SIZE),
            stride=tuple(slide.STRIDE),
            tile_batch=slide.TILE_BATCH,
            scales=tuple(float(s) for s in augmentation.SCALES) if augmentation.ENABLED else (1.0,),
            flip=augmentation.ENABLED and augmentation.FLIP,
            padding=cfg.TEST.PADDING,
            logits_device=cfg.TEST.LOGITS_DEVICE,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
        )

    @property
    def averages_probabilities(self) -> bool:
        """Whether several views of an image are averaged; then scores are probabilities, else logits."""
        return self.flip or len(self.scales) > 1

    @property
    def is_one_forward(self) -> bool:
        """Whether the network sees each image once, whole and padded, as it does while it trains."""
        return self.mode == "whole" and self.scales == (1.0,) and not self.flip and self.padding == "stride"

    def summary(self) -> str:
        """Returns in a line what is done with an image, once it has its size."""
        if self.mode == "slide":
            crop, stride = (" x ".join(str(n) for n in pair) for pair in (self.crop_size, self.stride))
            parts = [f"windows of {crop} every {stride}, logits averaged"]
        else:
            parts = ["whole image"]
        if self.scales == (1.0,):
            parts.append("one scale")
        else:
            parts.append("scales " + ", ".join(f"{scale:g}" for scale in self.scales))
        parts.append("mirrored too" if self.flip else "no flip")
        if self.averages_probabilities:
            parts.append("probabilities averaged")
        if self.padding == "none":
            parts.append("input not padded")
        return ", ".join(parts)

    def describe(self) -> dict[str, Any]:
        """Returns all that changes the numbers, for the JSON of an evaluation."""
        described: dict[str, Any] = {
            "mode": self.mode,
            "scales": list(self.scales),
            "flip": self.flip,
            "padding": self.padding,
            "min_size": self.min_size,
        }
        if self.min_size:
            described["max_size"] = self.max_size
        if self.mode == "slide":
            described["crop_size"] = list(self.crop_size)
            described["stride"] = list(self.stride)
        return described


def refuse_unsupported(cfg: CfgNode) -> None:
    """Raises where ``cfg.TEST`` asks for what is not done here, before a model is built.

    Raises:
        ConfigError: a key of ``TEST`` has a value that cannot be used.
    """
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ConfigError("TEST.PRECISE_BN.ENABLED is True, which is not supported: set it to False.")
    if cfg.TEST.EXPECTED_RESULTS and not cfg.DATASETS.TEST:
        raise ConfigError("TEST.EXPECTED_RESULTS is given, and DATASETS.TEST is empty: nothing is measured.")
    InferenceProtocol.from_config(cfg)


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        shown = ", ".join(choice or '""' for choice in choices)
        raise ConfigError(f'{key} is "{value}"; expected one of {shown}.')
