"""Static int8 by ONNX Runtime, and what it costs in accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor, nn

from regseg_d2.apps.export.formats import INPUT_NAME, METADATA_KEY, Runner, errors_only, optional_package
from regseg_d2.apps.export.network import HEAD_SCORES, LABELS, stretched
from regseg_d2.common.errors import ConfigError
from regseg_d2.data.loader import build_test_loader
from regseg_d2.evaluation.evaluator import StreamingSemSegEvaluator
from regseg_d2.evaluation.inference import InferenceProtocol, Predictor
from regseg_d2.modeling.layers import resize

# Where multiply-adds are, and what clips their outputs: the scale of an output then spans what is left of it,
# 0 to 6 of a ReLU6, and not what is cut off. What else lies between stays float.
_OPERATIONS = ["Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip"]


def calibration_images(cfg: CfgNode, dataset: str, count: int, network: Any) -> list[Tensor]:
    """Reads images of a data set, evenly spread over it, as the network takes them.

    Args:
        cfg: the config.
        dataset: name of the data set.
        count: how many; fewer where it has fewer.
        network: the exported network, for what it takes.

    Raises:
        UserError: there is no such data set, or a file cannot be used.
    """
    loader = build_test_loader(cfg, dataset)
    wanted = {round(i * (len(loader) - 1) / max(count - 1, 1)) for i in range(min(count, len(loader)))}
    images = []
    for index, (sample,) in enumerate(loader):
        if index in wanted:
            image = sample["image"].unsqueeze(0).float()
            images.append(fitted(image, network.size or image.shape[-2:]))
        if len(images) == len(wanted):
            break
    return images


def fitted(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image ``(1, 3, H, W)`` at the size that a network takes."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def quantize(source: Path, target: Path, images: Sequence[Tensor], metadata: str) -> None:
    """Writes an ONNX file whose convolutions and matrix products are of int8.

    Weights have a scale a channel; that of activations spans the values that ``images`` gave them.

    Args:
        source: the float file.
        target: the file to write.
        images: inputs of the network.
        metadata: goes into it.
    """
    onnx = optional_package("onnx")
    tools = optional_package("onnxruntime.quantization")
    preparation = optional_package("onnxruntime.quantization.shape_inference")
    prepared = target.with_suffix(".prepared.onnx")

    class Images(tools.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self._rest: Iterator[Tensor] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._rest, None)
            return None if image is None else {INPUT_NAME: image.numpy()}

    with errors_only(None):
        preparation.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        tools.quantize_static(
            str(prepared),
            str(target),
            Images(),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATIONS,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )
    prepared.unlink()
    model = onnx.load(str(target))
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata})
    onnx.save(model, str(target))


class FileSegmentor(nn.Module):
    """An exported file as a segmentor that this package's predictor and evaluator take.

    Args:
        run: the file.
        network: what it is a file of.
        num_classes: number of classes K.
    """

    def __init__(self, run: Runner, network: Any, num_classes: int) -> None:
        super().__init__()
        self._run = run
        self._network = network
        self.gives_probabilities = network.segmentor.gives_probabilities
        self._num_classes = num_classes

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """Scores of each image, ``(K, H, W)``; of a file that gives labels 1 for the label, 0 else."""
        return [
            {"sem_seg": self._scores(sample["image"].unsqueeze(0).float())[0]} for sample in batched_inputs
        ]

    def _scores(self, images: Tensor) -> Tensor:
        network, size = self._network, (images.shape[-2], images.shape[-1])
        own = network.size or size
        result = self._run(fitted(images, own))
        if network.output == LABELS:
            result = F.one_hot(result.long(), self._num_classes).permute(0, 3, 1, 2).float()
        elif network.output == HEAD_SCORES:
            stride = network.segmentor.feature_stride(result, own) if network.pads else None
            result = stretched(result, own, stride)
        return resize(result, size)


def mean_ious(cfg: CfgNode, segmentor: nn.Module) -> dict[str, float]:
    """The mIoU in percent on each data set of ``DATASETS.TEST``, under the config's protocol.

    Args:
        cfg: the config.
        segmentor: a segmentor.

    Raises:
        UserError: a data set cannot be used.
    """
    protocol = InferenceProtocol.from_config(cfg)
    # Padding, or none, is inside an exported file.
    protocol = dataclasses.replace(protocol, padding="stride")
    predictor = Predictor(segmentor, protocol)
    scores = {}
    for name in cfg.DATASETS.TEST:
        evaluator = StreamingSemSegEvaluator(name, protocol=protocol, distributed=False)
        for batch in build_test_loader(cfg, name):
            evaluator.process(batch, predictor(batch))
        scores[name] = evaluator.evaluate()["sem_seg"]["mIoU"]
    return scores


def calibration_set(cfg: CfgNode, name: str) -> str:
    """The data set that int8 is calibrated on: ``name``, or the first of ``DATASETS.TRAIN``.

    Raises:
        ConfigError: there is none, or none to measure on.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty, and --int8 measures what it costs there; name a data set.")
    if not (name or cfg.DATASETS.TRAIN):
        raise ConfigError("DATASETS.TRAIN is empty; --int8 needs images: give --calibration-set NAME.")
    return name or cfg.DATASETS.TRAIN[0]
