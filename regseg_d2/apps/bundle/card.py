"""The model card of a bundle: what the hub reads of it, and what people do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from huggingface_hub import EvalResult, ModelCardData

from regseg_d2 import __version__
from regseg_d2.common.errors import printable
from regseg_d2.evaluation.inference import InferenceProtocol
from regseg_d2.prediction.classes import ClassList

TAGS = ("semantic-segmentation", "detectron2", "regseg_d2")


@dataclass(frozen=True)
class Measured:
    """An evaluation of the bundle's weights.

    Attributes:
        dataset: its name.
        protocol: what was done with an image, in a line.
        num_images: how many images there were.
        metrics: scores in percent; None where one is not defined.
        classes: IoU of each class in percent.
    """

    dataset: str
    protocol: str
    num_images: int
    metrics: Mapping[str, float | None]
    classes: Mapping[str, float | None]

    @classmethod
    def of(cls, content: Mapping[str, Any], name: str) -> Measured:
        """Takes the JSON of an evaluation; ``name`` is that of its file."""
        return cls(
            str(content.get("dataset", name)),
            str(content.get("protocol", "not recorded")),
            content["num_images"],
            content["metrics"],
            {each["name"]: each["IoU"] for each in content["classes"]},
        )


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        title: name of the model.
        license: see ``BundleOptions``.
        dataset: what it was trained on.
        cfg: config of the run.
        classes: names and colours of the classes.
        protocol: what is done with an image.
        measured: evaluations of these weights.
        completed_steps: steps that it was trained for, where that is known.
        num_parameters: of the network.
    """

    title: str
    license: str
    dataset: str
    cfg: CfgNode
    classes: ClassList
    protocol: InferenceProtocol
    measured: Sequence[Measured]
    completed_steps: int | None
    num_parameters: int

    def text(self) -> str:
        """Returns the card: YAML for the hub, then Markdown."""
        parts = [
            f"---\n{self._metadata().to_yaml()}\n---\n",
            f"# {_cell(self.title)}\n",
            "Semantic segmentation: a class for each pixel of an image. Trained with "
            f"regseg_d2 {__version__}, on Detectron2.\n",
            _USE,
            f"## Results\n\n{self._results()}",
            f"## Classes\n\n{self._classes()}",
            f"## Images\n\n{self._images()}",
            f"## Training\n\n{self._training()}",
            f"## License\n\n{_cell(self.license) or 'Not given: ask whoever made this model.'}\n",
        ]
        return "\n".join(parts)

    def _metadata(self) -> ModelCardData:
        results = [
            EvalResult(
                task_type="image-segmentation",
                dataset_type=each.dataset,
                dataset_name=each.dataset,
                metric_type="mean_iou",
                metric_name="mIoU in percent",
                metric_value=round(each.metrics["mIoU"], 4),
            )
            for each in self.measured
            if each.metrics["mIoU"] is not None
        ]
        return ModelCardData(
            license=self.license or None,
            library_name="regseg_d2",
            pipeline_tag="image-segmentation",
            tags=list(TAGS),
            model_name=self.title if results else None,
            eval_results=results or None,
        )

    def _results(self) -> str:
        if not self.measured:
            return "These weights were not evaluated.\n"
        means = [name for name in ("mIoU", "mACC", "pACC", "fwIoU") if name in self.measured[0].metrics]
        rows = [
            [
                each.dataset,
                str(each.num_images),
                *(_score(each.metrics.get(name)) for name in means),
                each.protocol,
            ]
            for each in self.measured
        ]
        table = _table(["data set", "images", *means, "protocol"], rows)
        return f"In percent, measured by `train_net.py` on these very weights.\n\n{table}"

    def _classes(self) -> str:
        rows = []
        for index, (name, color) in enumerate(
            zip(self.classes.names, self.classes.colors.tolist(), strict=True)
        ):
            scores = [_score(each.classes.get(name)) for each in self.measured]
            rows.append([str(index), name, "#{:02x}{:02x}{:02x}".format(*color), *scores])
        return _table(
            ["label", "class", "color", *(f"IoU on {each.dataset}" for each in self.measured)], rows
        )

    def _images(self) -> str:
        cfg, size = self.cfg, "at their own size"
        if self.protocol.min_size:
            size = f"resized to a shorter side of {self.protocol.min_size}, the longer at most "
            size += str(self.protocol.max_size)
        mean, std = (
            [round(float(value), 4) for value in key] for key in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
        )
        return (
            f"8-bit {cfg.INPUT.FORMAT}, {size}; less the mean {mean}, over the deviation {std}. Protocol: "
            f"{self.protocol.summary()}. `Predictor` does all of it.\n"
        )

    def _training(self) -> str:
        cfg = self.cfg
        network = cfg.MODEL.HUGGINGFACE.NAME or cfg.MODEL.HUGGINGFACE.MODEL_TYPE
        network = Path(network).name if Path(network).is_dir() else network  # a folder of this machine
        if not network:
            backbone = {
                "build_timm_backbone": cfg.MODEL.TIMM.NAME,
                "build_mit_backbone": f"MiT-{cfg.MODEL.MIT.DEPTH}",
            }.get(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.NAME)
            head = cfg.MODEL.SEM_SEG_HEAD
            network = f"{head.NAME}{f' ({head.CONTEXT})' if head.NAME == 'ContextHead' else ''} on {backbone}"
        lines = [
            f"- data: {_cell(self.dataset) or 'not given'}",
            f"- network: {_cell(network)}, {self.num_parameters / 1e6:.2f} million parameters",
            f"- regularizers, gone in this model: {', '.join(cfg.MODEL.REGULARIZERS.NAMES) or 'none'}",
            f"- steps: {self.completed_steps if self.completed_steps is not None else 'not recorded'}, of "
            f"{cfg.SOLVER.IMS_PER_BATCH} images each; seed {cfg.SEED}",
            "- every other key: `config.yaml`",
        ]
        return "\n".join(lines) + "\n"


_USE = """## Use

Where regseg_d2 and Detectron2 are installed:

```python
from regseg_d2 import Predictor

predictor = Predictor.from_bundle("FOLDER")  # this folder; from_hub("OWNER/NAME") loads it from the hub
prediction = predictor("photo.jpg")
prediction.overlay().save("overlay.png")  # prediction.labels are the classes, (H, W)
```
"""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    """A text of a file as one line of Markdown that starts nothing."""
    for mark in "\\`*_<>[]|":
        text = text.replace(mark, f"\\{mark}")
    return printable(text, None)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
