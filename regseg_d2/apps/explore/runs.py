"""Views of trained models of this package: finished runs, and configs with weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_context
from torch import Tensor

from regseg_d2.apps.compare.runs import Run
from regseg_d2.common.errors import ConfigError
from regseg_d2.common.json_files import read_json_lines
from regseg_d2.common.metric_names import current_names
from regseg_d2.config import get_regseg_cfg
from regseg_d2.config.files import flatten_config
from regseg_d2.data.datasets.declared import register_declared
from regseg_d2.data.images import read_image
from regseg_d2.drawing.pictures import class_colors
from regseg_d2.engine.devices import with_available_device
from regseg_d2.engine.trained_model import load_trained_model
from regseg_d2.evaluation.inference import build_predictor
from regseg_d2.evaluation.inference.network import cell_size
from regseg_d2.evaluation.looking.views import View
from regseg_d2.evaluation.measuring import FeatureReader, LabelledImages
from regseg_d2.segmentor.places import classified_feature_tap


class RunSource:
    """Views of a trained model of this package.

    Args:
        name: what figures call it.
        cfg: its config, with MODEL.WEIGHTS; the test protocol makes the predictions.
        dataset: name of a data set with labels.
        tap: the feature; ``""`` takes what the classifier reads, before dropout.
        limit: so many images at most, from the first on.
        folder: of the run, where it has one.

    Raises:
        CheckpointError: there are no weights, or they do not fit the model.
        ConfigError: the data set has other classes than the model, or the tap does not exist.
    """

    def __init__(
        self,
        name: str,
        cfg: CfgNode,
        dataset: str,
        *,
        tap: str = "",
        limit: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name, self.folder = name, folder
        self.cfg = cfg = with_available_device(cfg)
        register_declared(cfg.DATASETS.DECLARED)
        self._images = LabelledImages(cfg, dataset, limit)
        files = self._images.files
        self._names = dict(zip(files, relative_names(files), strict=True))
        self.classes: Sequence[str] = self._images.classes
        if len(self.classes) != cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
            raise ConfigError(
                f"'{dataset}' has {len(self.classes)} classes and '{name}' was trained for "
                f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}: expected a data set with the classes of all runs."
            )
        self.colors = class_colors(MetadataCatalog.get(dataset), len(self.classes))
        self._model = load_trained_model(cfg).model
        self._predictor = build_predictor(cfg, self._model)
        self._reader = FeatureReader(self._model, tap or classified_feature_tap(self._model))

    def __len__(self) -> int:
        return len(self._names)

    @property
    def settings(self) -> dict[str, Any]:
        """What of the config differs from the defaults and can change what is learned, and the seed."""
        flat, defaults = flatten_config(self.cfg), flatten_config(get_regseg_cfg())
        settings = Run(Path(), flat, {}).settings()
        settings.pop("MODEL.WEIGHTS", None)  # those that it is looked at with
        changed = {key: value for key, value in settings.items() if value != defaults.get(key)}
        return {"SEED": flat["SEED"], **changed}

    def training_log(self) -> list[dict[str, Any]]:
        """Reads ``metrics.json`` of the run's folder."""
        file = self.folder / "metrics.json" if self.folder else None
        rows = read_json_lines(file, is_growing=True) if file and file.is_file() else []
        return [current_names(row) for row in rows]

    def __iter__(self) -> Iterator[View]:
        return (self._view(*pair) for pair in self._images)

    def subset(self, names: Iterable[str]) -> Iterator[View]:
        """Yields the views of some images, in this order."""
        files = {name: file for file, name in self._names.items()}
        return (self._view(*pair) for pair in self._images.of(files[name] for name in names))

    def _view(self, sample: dict[str, Any], label: Tensor) -> View:
        image, (height, width) = sample["image"], label.shape
        sized = {**sample, "height": height, "width": width}
        with inference_context(self._model), torch.no_grad():
            if self._predictor.protocol.is_one_forward:
                feature, scores = self._reader.during(lambda: self._scores(sized))
            else:
                feature, scores = self._reader.of(image), self._scores(sized)
        return View(
            self._names[sample["file_name"]],
            read_image(sample["file_name"]),
            label,
            scores,
            feature.cpu(),
            cell_size(self._model, image.shape[-2:], feature.shape[-2:], (height, width)),
        )

    def _scores(self, sample: dict[str, Any]) -> Tensor:
        """Logits where the protocol gives them, else logarithms of probabilities."""
        predict = self._predictor
        if not predict.gives_probabilities:
            return predict.scores([sample])[0]["sem_seg"].float().cpu()
        probabilities = predict.probabilities([sample])[0]["sem_seg"].cpu()
        return probabilities.clamp(min=torch.finfo(torch.float32).tiny).log()


def relative_names(files: Sequence[str]) -> list[str]:
    """Names files by their path below the folder that they share; with "/" on every system."""
    paths = [os.path.abspath(file) for file in files]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    return [Path(os.path.relpath(path, shared)).as_posix() for path in paths]


def open_sources(
    configs: Mapping[str, CfgNode],
    folders: Mapping[str, Path],
    *,
    dataset: str | None = None,
    tap: str = "",
    limit: int | None = None,
) -> list[RunSource]:
    """Loads trained models.

    Args:
        configs: a config with weights of each, by name.
        folders: of those that have one.
        dataset: what to look at; None is the first test set of the first config.
        tap: the feature; ``""`` as in :class:`RunSource`.
        limit: so many images at most.

    Raises:
        UserError: as :class:`RunSource`; or there is neither a config nor a test set.
    """
    if dataset is None:
        tests = [name for cfg in configs.values() for name in cfg.DATASETS.TEST][:1]
        if not tests:
            raise ConfigError("There is nothing to look at: give the OUTPUT_DIR of a run with DATASETS.TEST.")
        dataset = tests[0]
    return [
        RunSource(name, cfg, dataset, tap=tap, limit=limit, folder=folders.get(name))
        for name, cfg in configs.items()
    ]
